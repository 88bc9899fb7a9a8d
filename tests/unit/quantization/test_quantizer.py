"""An int8 copy of the embedded model, made and run by OpenVINO and NNCF."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.quantized import digit_pngs, quantize_digits
from vit_api.__main__ import main
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.checkpoints.int8 import VERDICT, check_int8
from vit_api.decoding.images import decode
from vit_api.ipc.records import EMBEDDING, Prediction
from vit_api.model.model import VisionModel

pytest.importorskip("openvino", reason="needs .venv-openvino: make openvino-test")
pytest.importorskip("nncf", reason="needs .venv-openvino: make openvino-test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the int8 copy."""
    out = tmp_path_factory.mktemp("quantized") / "digits-int8"
    assert quantize_digits(out) == []
    return out


def _predict(model: VisionModel, images: int, parts: int = 0) -> list[Prediction]:
    checkpoint = load_checkpoint("digits")
    pixels = [decode(png, checkpoint.preprocessing, exact=False) for png in digit_pngs()[:images]]
    return model.collect(model.launch(model.stage(pixels), parts))


def test_the_copy_passes_and_is_served(folder: Path) -> None:
    """Its verdict has the figures, and says what it is about."""
    verdict = json.loads((folder / VERDICT).read_text())
    assert verdict["verdict"] == "passed"
    assert verdict["comparison"]["images"] >= 1000
    assert check_int8(load_checkpoint(str(folder))) is None


@pytest.mark.parametrize("images", [1, 3, 8])
def test_the_server_runs_it_in_batches_of_any_size(folder: Path, images: int) -> None:
    """The answers are close to float32's, but not the same: it is not float32 that runs."""
    model = VisionModel(load_checkpoint(str(folder)), "cpu", "int8", 1, max_batch_size=8)
    model.prepare("auto")
    assert (model.engine.name, str(model.dtype)) == ("openvino", "torch.int8")
    reference = VisionModel(load_checkpoint("digits"), "cpu", "float32", 1, max_batch_size=8)
    found, expected = _predict(model, images), _predict(reference, images)
    assert [one.indices[0] for one in found] == [one.indices[0] for one in expected]
    assert [one.logits for one in found] != [one.logits for one in expected]


def test_embeddings(folder: Path) -> None:
    """They are those of the int8 network, and have length 1."""
    model = VisionModel(load_checkpoint(str(folder)), "cpu", "int8", 1, max_batch_size=8)
    reference = VisionModel(load_checkpoint("digits"), "cpu", "float32", 1, max_batch_size=8)
    for ours, other in zip(_predict(model, 3, EMBEDDING), _predict(reference, 3, EMBEDDING), strict=True):
        found, expected = (np.frombuffer(one.embedding or b"", "<f4") for one in (ours, other))
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-4)
        assert found @ expected > 0.95


def test_too_few_images_fail(tmp_path: Path) -> None:
    """Though the answers agree, the verdict is "failed"."""
    failures = quantize_digits(tmp_path / "out", judged=200)
    assert failures[0].startswith("Only 200 images were judged")
    assert json.loads((tmp_path / "out" / VERDICT).read_text())["verdict"] == "failed"


def _call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["vit-api", "quantize", *map(str, arguments)])
    return main()


def test_the_command_says_how_many_images_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A usage error, before anything is loaded."""
    (tmp_path / "one.png").write_bytes(digit_pngs()[0])
    assert _call(monkeypatch, "--model", "digits", "--images", tmp_path, "--out", tmp_path / "out") == 2
    assert "has 1 files" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory with files is refused."""
    (tmp_path / "one.png").write_bytes(digit_pngs()[0])
    assert _call(monkeypatch, "--model", "digits", "--images", tmp_path, "--out", tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err
