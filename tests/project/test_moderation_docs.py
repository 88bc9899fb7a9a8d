"""The commands of docs/moderation.md, run one after the other as a reader would."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.server import ROOT, RunningServer, environment, serve_by, wait_until
from vit_api.settings import Settings

_PAGE = (ROOT / "docs" / "moderation.md").read_text()
_BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", _PAGE, re.MULTILINE | re.DOTALL)
_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()


class _Reader:
    """Runs the page's commands in a folder like a checkout; the one that serves goes on until the end."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._server: RunningServer | None = None
        self.outputs: list[tuple[str, str]] = []
        for name in ("examples", "vit_api", "deploy"):
            (folder / name).symlink_to(ROOT / name)

    def run(self, language: str, code: str) -> None:
        if " serve " in code:
            command = ["bash", "-c", f"exec env {code}"]
            self._server = self._stack.enter_context(serve_by(command, self._folder, self._variables()))
            return
        if self._server is not None:
            code = code.replace("http://127.0.0.1:7860", self._server.url)
        code = code.replace("curl --json", 'curl --header "content-type: application/json" --data')  # curl before 7.82
        program = [sys.executable, "-c"] if language == "python" else ["bash", "-e", "-o", "pipefail", "-c"]
        result = subprocess.run(
            [*program, code],
            cwd=self._folder,
            env=environment() | self._variables(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, f"{code}\n{result.stdout}{result.stderr}"
        self.outputs.append((code, result.stdout))
        if "/v1/moderations" in code:  # a reader takes longer to the next command than the log to be written
            log = self._folder / "decisions.jsonl"
            wait_until(lambda: log.exists() and len(log.read_text().splitlines()) == 2)

    def _variables(self) -> dict[str, str]:
        (self._folder / ".curlrc").write_text("fail\nsilent\nshow-error\n")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, "CURL_HOME": str(self._folder), "PYTHONPATH": str(ROOT)}

    def output_of(self, part: str) -> str:
        """Return the output of the command that has `part`."""
        (output,) = (output for code, output in self.outputs if part in code)
        return output


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Reader]:
    with ExitStack() as stack:
        reader = _Reader(tmp_path_factory.mktemp("checkout"), stack)
        for language, code in _BLOCKS:
            if "promtool" not in code or shutil.which("promtool"):
                reader.run(language, code)
        yield reader


def test_the_answers_are_flagged(reader: _Reader) -> None:
    """Each label has its own probability, and the seven is flagged, in both protocols."""
    answer = json.loads(reader.output_of("/predict"))
    assert answer["flagged"] is True
    assert [(one["label"], one["flagged"]) for one in answer["predictions"]] == [("7", True), ("9", False)]
    (moderation,) = json.loads(reader.output_of("/v1/moderations"))["results"]
    assert (moderation["flagged"], moderation["categories"]["7"]) == (True, True)


def test_the_decisions_are_found_by_the_image(reader: _Reader) -> None:
    """Both answers are in the log, with the members that the page lists and the digest of the answer."""
    decisions = [json.loads(line) for line in reader.output_of("sha256sum").splitlines()]
    answer = json.loads(reader.output_of("/predict"))
    assert [decision["flagged"] for decision in decisions] == [True, True]
    rows = [line.split("|")[1] for line in _PAGE.splitlines() if line.startswith("| `") and "ViT" not in line]
    members = set(re.findall(r"`(\w+)`", " ".join(rows)))
    for decision in decisions:
        assert decision.keys() == members - {"frame"}
        assert decision["upload_sha256"] == hashlib.sha256(_SEVEN).hexdigest()
        assert decision["thresholds"] == answer["thresholds_digest"]


def test_the_metrics_count(reader: _Reader) -> None:
    """Both answers are counted as predictions and as flags."""
    lines = reader.output_of("/metrics").splitlines()
    assert lines == ['inference_predictions_total{label="7"} 2.0', 'inference_flagged_total{label="7"} 2.0']


def test_names_on_the_page_exist() -> None:
    """Settings, alerts and the configuration of logrotate."""
    fields = {f"VIT_API_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"VIT_API_[A-Z_]+", _PAGE)) <= fields
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    for alert in re.findall(r"`(ViT\w+)`", _PAGE):
        assert f"alert: {alert}\n" in alerts
    assert "delaycompress" in (ROOT / "deploy" / "logrotate" / "vit-api").read_text()
