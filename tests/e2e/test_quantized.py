"""An int8 model, as the command makes it and a server runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.quantized import digit_pngs
from tests.support.server import ROOT, free_port, serve
from vit_api.checkpoints.int8 import VERDICT

pytest.importorskip("openvino", reason="needs .venv-openvino: make openvino-test")
pytest.importorskip("nncf", reason="needs .venv-openvino: make openvino-test")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Have the command make an int8 copy of the embedded model; return its folder, and what was printed."""
    place = tmp_path_factory.mktemp("quantized")
    (place / "images").mkdir()
    for number, png in enumerate(digit_pngs()):
        (place / "images" / f"{number:04}.png").write_bytes(png)
    (place / "images" / "0000-notes.txt").write_text("no image")
    out = place / "digits-int8"
    command = [sys.executable, "-m", "vit_api", "quantize", "--model", "digits", "--images", place / "images"]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True, timeout=500, check=False, cwd=ROOT)
    return out, done


@pytest.fixture
def folder(made: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """Return the folder of the int8 copy."""
    return made[0]


def test_the_command_says_what_it_made(made: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """The figures, the verdict, the speed, and how to serve it; a file that is no image is named and left out."""
    out, done = made
    assert done.returncode == 0, done.stderr
    assert "Judged on 1670 images" in done.stdout
    assert "The gate is passed." in done.stdout
    assert "In batches of 8, the model alone does " in done.stdout
    assert f"Serve it: VIT_API_MODEL={out} VIT_API_DTYPE=int8" in done.stdout
    assert "0000-notes.txt: not used: " in done.stderr


def test_an_int8_model_is_served(folder: Path) -> None:
    """The answers are the classes of the scans; /info names the dtype and the engine."""
    with serve(model=str(folder), dtype="int8", device="cpu", api_servers=1) as server:
        (worker,) = server.get("/info").json()["workers"]
        assert (worker["dtype"], worker["engine"]) == ("int8", "openvino")
        assert 'dtype="int8"' in server.get("/metrics").text
        from sklearn.datasets import load_digits

        tops = [server.top(png, 1)[0][0] for png in digit_pngs()[:20]]
        right = [top == str(target) for top, target in zip(tops, load_digits().target[:20], strict=True)]
        assert sum(right) >= 19


def test_a_failed_verdict_stops_the_start(folder: Path) -> None:
    """The error says what failed; the setting serves it nevertheless, with a warning."""
    content = (folder / VERDICT).read_text()
    failed = json.loads(content) | {"verdict": "failed", "failures": ["Only 3 images were judged."]}
    (folder / VERDICT).write_text(json.dumps(failed))
    try:
        command = [
            sys.executable,
            str(ROOT / "server.py"),
            "--model",
            str(folder),
            "--dtype",
            "int8",
            "--port",
            str(free_port()),
        ]
        stopped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
        assert stopped.returncode == 1
        assert "it failed its gate. Only 3 images were judged." in stopped.stderr
        options = {"model": str(folder), "dtype": "int8", "device": "cpu", "api_servers": 1}
        with serve(**options, allow_unverified_int8=True) as server:
            assert "is served in int8 without a valid verdict" in server.log.read_text()
    finally:
        (folder / VERDICT).write_text(content)
