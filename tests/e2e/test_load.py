"""The load test on real servers: `vit-api load` and `vit-api bench`."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from tests.support import forked_servers
from tests.support.server import ROOT, RunningServer, serve
from vit_api.__main__ import main
from vit_api.load import own_server

_SHORT = ("--seconds", "0.5", "--warm-up", "0.2")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a command line and returns its exit status."""

    def run_command(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["vit-api", *arguments])
        return main()

    return run_command


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--concurrency", "1,6", "--processes", "2"], id="closed loop"),
        pytest.param(["--rate", "40", "--form", "--repeat-share", "0.5"], id="open loop, forms, repeats"),
        pytest.param(["--rate", "40", "--arrivals", "constant", "--unique"], id="open loop, constant"),
    ],
)
def test_load(digits_server: RunningServer, tmp_path: Path, options: list[str], run: Any) -> None:
    """All requests succeed, and the report has the client's figures and the server's metrics, in each form."""
    file, plot, table = tmp_path / "load.json", tmp_path / "load.png", tmp_path / "load.csv"
    files = ["--json", str(file), "--plot", str(plot), "--csv", str(table)]
    assert run("load", digits_server.url, *options, *_SHORT, *files) == 0
    report = _read(file)
    runs = report["runs"]
    assert report["target"]["url"] == digits_server.url
    assert report["target"]["model"] == "digits"
    assert len(runs) == (2 if "--concurrency" in options else 1)
    for result in runs:
        assert result["errors"] == {}
        assert result["goodput_per_s"] > 0
        assert result["latency_ms"]["p50"] > 0
        assert result["server"]["mean_batch_size"] >= 1
        assert result["metrics"]["mean_batch_size"] >= 1
        assert result["metrics"]["decode_ms"] > 0
        assert result["metrics"]["queue_ms"] > 0
        assert result["metrics"]["inference_ms"] > 0
        assert ("hit" in result["cache"]) == ("--repeat-share" in options)
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [float(row["goodput_per_s"]) for row in rows] == [result["goodput_per_s"] for result in runs]
    assert [row["unit"] for row in rows] == ["connections" if "--concurrency" in options else "requests/s"] * len(rows)


def test_a_run_is_compared_with_an_earlier_one(
    digits_server: RunningServer, tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table has both figures and the change, for the loads that both have."""
    file, plot = tmp_path / "before.json", tmp_path / "both.png"
    assert run("load", digits_server.url, "--rate", "20,30", *_SHORT, "--json", str(file)) == 0
    capsys.readouterr()
    options = ["--rate", "30,40", "--compare", str(file), "--plot", str(plot)]
    assert run("load", digits_server.url, *options, *_SHORT) == 0
    printed = capsys.readouterr().out
    comparison = printed[printed.index("before: ") :]
    assert "30/s" in comparison
    assert "40/s" not in comparison
    assert "%" in comparison
    assert plot.stat().st_size > 0


def test_a_server_with_keys_is_tested_with_a_header(tmp_path: Path, run: Any) -> None:
    """The key is used for all requests, and is not in the report."""
    key, file = "a-long-enough-key", tmp_path / "load.json"
    with serve(api_keys=key) as server:
        options = ["--concurrency", "2", "--header", f"X-API-Key: {key}", "--json", str(file)]
        assert run("load", server.url, *options, *_SHORT) == 0
    report = _read(file)
    assert report["target"]["model"] == "digits"
    assert report["runs"][0]["errors"] == {}
    assert key not in file.read_text()


def test_errors_are_counted(
    digits_server: RunningServer, tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """By code; if nothing was answered, the exit status is 1."""
    images, file = tmp_path / "images", tmp_path / "load.json"
    images.mkdir()
    (images / "text").write_text("not an image")
    options = ["--images", str(images), "--rate", "30", "--json", str(file)]
    assert run("load", digits_server.url, *options, *_SHORT) == 1
    assert list(_read(file)["runs"][0]["errors"]) == ["unsupported_image"]
    printed = capsys.readouterr()
    assert "unsupported_image" in printed.out
    assert printed.err == "error: No request was answered: see the errors above.\n"


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        pytest.param(["http://127.0.0.1:9"], "cannot be reached", 1, id="no listener"),
        pytest.param(["--compare", "/nowhere.json"], "can't be read", 2, id="no earlier report"),
        pytest.param(["--compare", __file__], "is no report", 2, id="not a report"),
    ],
)
def test_misuse_is_an_error_of_a_line(
    arguments: list[str], message: str, status: int, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is measured."""
    assert run("load", *arguments) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def _fork(command: list[str], stdout: IO[bytes], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    return forked_servers.start(command, cwd=ROOT, env=None, stdout=stdout, stderr=stderr)


@pytest.fixture
def forked_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `bench` fork its server; tests/project/test_docs_examples.py runs it as it is."""
    replaced = SimpleNamespace(Popen=_fork, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(own_server, "subprocess", replaced)


@pytest.mark.usefixtures("forked_bench")
def test_bench_starts_a_server_and_stops_it(tmp_path: Path, run: Any) -> None:
    """It needs nothing but the package; afterwards, nothing listens."""
    file = tmp_path / "bench.json"
    assert run("bench", "--concurrency", "2", *_SHORT, "--json", str(file)) == 0
    report = _read(file)
    assert report["target"]["model"] == "digits"
    assert report["runs"][0]["goodput_per_s"] > 0
    assert run("load", report["target"]["url"], *_SHORT) == 1


@pytest.mark.usefixtures("forked_bench")
def test_bench_says_why_its_server_does_not_start(tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With the end of the server's log."""
    assert run("bench", "--model", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: The server did not start: ")
    assert "config.json" in error
