"""A server with an int8 model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.quantized import digit_pngs, quantize_digits
from tests.support.server import ROOT, serve
from vit_api.checkpoints.int8 import VERDICT

pytest.importorskip("openvino", reason="needs .venv-openvino: make openvino-test")
pytest.importorskip("nncf", reason="needs .venv-openvino: make openvino-test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an int8 copy of the embedded model."""
    out = tmp_path_factory.mktemp("quantized") / "digits-int8"
    quantize_digits(out)
    return out


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
            "23990",
        ]
        stopped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
        assert stopped.returncode == 1
        assert "it failed its gate. Only 3 images were judged." in stopped.stderr
        options = {"model": str(folder), "dtype": "int8", "device": "cpu", "api_servers": 1}
        with serve(**options, allow_unverified_int8=True) as server:
            assert "is served in int8 without a valid verdict" in server.log.read_text()
    finally:
        (folder / VERDICT).write_text(content)
