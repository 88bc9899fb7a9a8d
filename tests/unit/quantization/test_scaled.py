"""The command that judges a checkpoint in the precisions of CUDA, which the CPU emulates here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.quantized import digit_pngs
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.quantization import command

_JUDGED = 1000

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU computes the products itself: see tests/unit/model/test_scaled_products.py"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of scans."""
    folder = tmp_path_factory.mktemp("scans")
    for number, png in enumerate(digit_pngs()[:_JUDGED]):
        (folder / f"{number:04}.png").write_bytes(png)
    return folder


def _quantize(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["quantize", "--model", "digits", *arguments])
    status: int = parsed.run(parsed)
    return status


def test_the_copy_has_the_original_weights_and_a_verdict_for_cuda(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is calibrated: every image is judged, and rounding takes place when the copy is loaded."""
    out = tmp_path / "copy"
    assert _quantize("--images", str(images), "--out", str(out), "--dtype", "fp8") == 0
    verdict = json.loads((out / "quantization.json").read_text())
    assert (verdict["dtype"], verdict["device"], verdict["judged_on"]) == ("fp8", "cuda", "CPU")
    assert verdict["comparison"]["images"] == _JUDGED
    assert "speed" not in verdict
    printed = capsys.readouterr().out
    assert "The gate is passed.\nThe speed was not measured: there is no GPU here." in printed
    assert f"Serve it: VIT_API_MODEL={out} VIT_API_DTYPE=fp8" in printed
    original, copy = (load_file(load_checkpoint(model).path / "model.safetensors") for model in ("digits", str(out)))
    assert original.keys() == copy.keys()
    assert all(torch.equal(original[name], copy[name]) for name in original)


def test_a_verdict_on_few_images_is_failed(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However well they agree."""
    few, out = tmp_path / "few", tmp_path / "copy"
    few.mkdir()
    for file in sorted(images.iterdir())[:20]:
        (few / file.name).write_bytes(file.read_bytes())
    assert _quantize("--images", str(few), "--out", str(out), "--dtype", "int8", "--device", "cuda") == 1
    assert json.loads((out / "quantization.json").read_text())["verdict"] == "failed"
    printed = capsys.readouterr().out
    assert "The gate is failed." in printed
    assert "Serve it" not in printed


def test_fp8_on_a_cpu_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No CPU computes in it."""
    assert _quantize("--images", str(images), "--out", str(tmp_path / "copy"), "--dtype", "fp8", "--device", "cpu") == 2
    assert "fp8 is served on a GPU only" in capsys.readouterr().err
