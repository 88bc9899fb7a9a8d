"""The comparison with other servers: servers, client, figures and tables."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from benchmarks import compare
from benchmarks.compare_parts import cells, subjects
from benchmarks.compare_parts.subjects import Load, Subject
from benchmarks.compare_parts.table import table
from benchmarks.harness import no_server, peers, pictures, wrk
from benchmarks.harness.peer_environments import Environment, NotInstalled
from benchmarks.harness.peers import Peer
from vit_api.load import uploads

needs_wrk = pytest.mark.skipif(not wrk.is_installed(), reason="wrk is not installed; on Debian: apt-get install wrk")


@pytest.fixture(scope="module")
def available() -> tuple[list[Peer], dict[str, str]]:
    """Install the other servers where that is possible; return them, and why each other one is missing."""
    return subjects.available(may_install=True)


@pytest.fixture(scope="module")
def running(available: tuple[list[Peer], dict[str, str]]) -> Iterator[dict[str, Subject]]:
    """Run ours, stock LitServe and the other servers, all paused, with a worker each; yield them by name."""
    found, _ = available
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "sched_getaffinity", lambda _: {0})
            started = stack.enter_context(subjects.running("digits", "auto", found))
        names = [subject.name for subject in started]
        assert names == [subjects.OURS, subjects.STOCK, *(peer.name for peer in found)]
        yield dict(zip(names, started, strict=True))


@pytest.fixture(scope="module")
def limit() -> Iterator[no_server.NoServer]:
    """Run the baseline without a server, in one process."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "sched_getaffinity", lambda _: {0})
            started = stack.enter_context(no_server.NoServer.running("digits", "auto"))
        yield started


@pytest.mark.parametrize("name", [peer.name for peer in peers.all_peers()])
def test_a_peer_serves_the_same_answers(
    name: str, available: tuple[list[Peer], dict[str, str]], running: dict[str, Subject]
) -> None:
    """It gives the same results as our server, and answers all unique uploads of a load."""
    if name not in running:
        pytest.skip(available[1][name])
    compared = [running[subjects.OURS], running[subjects.STOCK], running[name]]
    subjects.check_answers(compared, pictures.small_png(32))
    subjects.check_answers(compared, pictures.noisy_jpeg(65_000))
    load = running[name].load(pictures.small_png(32), connections=4, seconds=0.5, warm_up_s=0.5)
    assert load.load.successes > 0
    assert load.load.failures == 0
    assert load.cpu_us is not None
    assert load.cpu_us > 0


@pytest.mark.parametrize("has_wrk", [pytest.param(True, marks=needs_wrk, id="wrk"), pytest.param(False, id="bundled")])
def test_compare(
    has_wrk: bool,
    running: dict[str, Subject],
    limit: no_server.NoServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without Triton and mosec, the report names them as missing and has the other servers."""
    started = [running[subjects.OURS], running[subjects.STOCK]]

    def run_again(model: str, dtype: str, of: list[Peer]) -> contextlib.nullcontext[list[Subject]]:
        assert (model, dtype, of) == ("digits", "auto", [])
        return contextlib.nullcontext(started)

    monkeypatch.setattr(subjects, "running", run_again)
    monkeypatch.setattr(no_server.NoServer, "running", lambda *_: contextlib.nullcontext(limit))
    monkeypatch.setattr(wrk, "is_installed", lambda: has_wrk)
    monkeypatch.setattr(Environment, "is_installed", lambda _: False)
    file = tmp_path / "compare.json"
    compare.main(["--quick", "--cells", "png-32", "--connections", "2", "--seconds", "0.5", "--out", str(file)])
    report = json.loads(file.read_text())
    assert set(report["missing_servers"]) == {"Triton", "mosec"}
    assert report["client"] == ("wrk -t1" if has_wrk else "bundled")
    (result,) = report["results"]
    assert set(result["servers"]) == {subjects.OURS, subjects.STOCK}
    assert result["limit_per_s"] > 0
    for figures in result["servers"].values():
        assert figures["errors"] == 0
        assert min(value for name, value in figures.items() if name != "errors") > 0
    assert report["unmeasured"] == []
    assert "make peers" in table(report)


def test_quick_installs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the missing servers and how to install them."""
    monkeypatch.setattr(Environment, "is_installed", lambda _: False)
    monkeypatch.setattr(Environment, "install", lambda _: pytest.fail("installed"))
    found, missing = subjects.available(may_install=False)
    assert found == []
    assert all("make peers" in reason for reason in missing.values())


def test_a_peer_that_cannot_be_installed_is_named(tmp_path: Path) -> None:
    """The error names the requirements file and pip's reason; a partial environment does not count as installed."""
    (tmp_path / "requirements-peers-none.txt").write_text("/no/such/folder/none-1-py3-none-any.whl\n")
    environment = Environment("none", tmp_path, tmp_path / "environments")
    with pytest.raises(NotInstalled, match=r"requirements-peers-none\.txt can't be installed: .+"):
        environment.install()
    assert not environment.is_installed()


def test_an_environment_is_created_once_per_set_of_pins(tmp_path: Path) -> None:
    """After a change of the pins, it is no longer installed."""
    requirements = tmp_path / "requirements-peers-empty.txt"
    requirements.write_text("# nothing\n")
    environment = Environment("empty", tmp_path, tmp_path / "environments")
    environment.install()
    first = environment.path
    created_at = (first / "complete").stat().st_mtime_ns
    environment.install()
    assert (first / "complete").stat().st_mtime_ns == created_at
    requirements.write_text("# nothing else\n")
    assert environment.path != first
    assert not environment.is_installed()


@pytest.mark.parametrize("name", ["triton", "mosec"])
def test_peers_are_pinned_exactly(name: str) -> None:
    """Every line is an exact pin, since pip installs them without dependencies."""
    lines = Environment(name).requirements.read_text().splitlines()
    packages = [line.partition("#")[0].strip() for line in lines if not line.startswith("#")]
    assert packages
    assert all("==" in package for package in packages)


class _Recorder(BaseHTTPRequestHandler):
    """Records each request's body and one header; every third request gets an error."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[bytes, str | None]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((body, self.headers["x-kind"]))
        self.send_response(503 if len(self.seen) % 3 == 0 else 200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def recorder() -> Iterator[tuple[str, list[tuple[bytes, str | None]]]]:
    """Run a recording server; yield its URL and the list of recorded requests."""
    handler = type("Handler", (_Recorder,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/predict", handler.seen
    server.shutdown()
    thread.join()
    server.server_close()


@needs_wrk
@pytest.mark.parametrize("is_form", [pytest.param(False, id="raw"), pytest.param(True, id="form")])
def test_every_upload_is_unique(recorder: tuple[str, list[tuple[bytes, str | None]]], is_form: bool) -> None:
    """Uploads are unique within and across loads and start with the same image; error statuses are not successes."""
    url, seen = recorder
    picture = pictures.small_png()
    body = uploads.as_form(wrk.marked(picture)) if is_form else wrk.marked(picture)
    loads = [wrk.post(url, body, uploads.RAW, connections=1, seconds=0.5, headers={"X-Kind": "test"}) for _ in "12"]
    bodies = [body for body, _ in seen]
    assert len(bodies) > 3
    assert len(set(bodies)) == len(bodies)
    assert {len(body) for body in bodies} == {len(body)}
    assert all(picture + wrk.FREE_BOX in body for body in bodies)
    assert {kind for _, kind in seen} == {"test"}
    for load in loads:
        assert 0 < load.error_statuses < load.requests
        assert load.successes == load.requests - load.error_statuses


@needs_wrk
def test_an_unmarked_body_is_sent_unchanged(recorder: tuple[str, list[tuple[bytes, str | None]]]) -> None:
    """For cache hits, all requests must be identical."""
    url, seen = recorder
    wrk.post(url, b"the same", uploads.RAW, connections=1, seconds=0.5)
    assert {body for body, _ in seen} == {b"the same"}


def test_tensors_of_triton_are_read() -> None:
    """The response is JSON with the sizes, then labels with their lengths, then float32."""
    labels = b"".join(struct.pack("<I", len(name)) + name for name in (b"cat", b"dog fish"))
    outputs = [{"parameters": {"binary_data_size": size}} for size in (len(labels), 8)]
    head = json.dumps({"outputs": outputs}).encode()
    content = head + labels + struct.pack("<2f", 0.75, 0.25)
    response = httpx.Response(200, content=content, headers={"inference-header-content-length": str(len(head))})
    assert subjects._read_tensors(response) == {"cat": 0.75, "dog fish": 0.25}


class _Answers(Subject):
    """A subject with fixed answers and loads, without a server."""

    def __init__(self, name: str, answer: dict[str, float], loads: list[Load]) -> None:
        super().__init__(name, server=None)  # type: ignore[arg-type]
        object.__setattr__(self, "fixed", answer)
        object.__setattr__(self, "loads", iter(loads))

    def answer(self, _: bytes) -> dict[str, float]:
        return self.fixed  # type: ignore[attr-defined,no-any-return]

    def load(self, *_: Any) -> Load:
        return next(self.loads)  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    "answer",
    [pytest.param({"a": 0.88, "b": 0.12}, id="probability"), pytest.param({"a": 0.95, "c": 0.05}, id="labels")],
)
def test_a_server_with_other_results_is_rejected(answer: dict[str, float]) -> None:
    """Probabilities may differ by at most 0.05, and the labels must be the same."""
    ours = _Answers(subjects.OURS, {"a": 0.95, "b": 0.05}, [])
    subjects.check_answers([ours, _Answers("close", {"a": 0.94, "b": 0.06}, [])], b"")
    with pytest.raises(RuntimeError, match="off answers"):
        subjects.check_answers([ours, _Answers("off", answer, [])], b"")


def _turn(requests: int, cpu_s: float, errors: int = 0) -> Load:
    return Load(wrk.Load(requests, 1.0, errors, 10.0, 20.0, errors), cpu_s)


class _Limit:
    def images_per_s(self, *_: Any) -> float:
        return 400.0


def test_figures_are_medians_and_errors_are_summed() -> None:
    """Only successes count for rates and CPU time; ratios are of adjacent turns."""
    ours = _Answers(subjects.OURS, {}, [_turn(100, 0.1), _turn(200, 0.4), _turn(300, 0.3)])
    other = _Answers("other", {}, [_turn(50, 0.1), _turn(110, 0.2, errors=10), _turn(600, 0.3)])
    result = compare.measure([ours, other], _Limit(), b"", 1, rounds=3, seconds=1)  # type: ignore[arg-type]
    assert result["servers"][subjects.OURS]["requests_per_s"] == 200
    assert result["servers"][subjects.OURS]["cpu_us_per_request"] == 1000
    assert result["servers"]["other"] == {
        "requests_per_s": 100, "p50_ms": 10, "p99_ms": 20, "cpu_us_per_request": 2000, "errors": 10
    }  # fmt: skip
    assert result["ratios"] == {"other": {"rate": 2.0, "cpu": 1.0}}
    assert result["of_the_limit"] == 0.5


def test_a_server_without_successes_has_no_ratio() -> None:
    """Its row has the number of failed requests."""
    ours = _Answers(subjects.OURS, {}, [_turn(100, 0.1)])
    other = _Answers("other", {}, [_turn(7, 0.1, errors=7)])
    result = compare.measure([ours, other], _Limit(), b"", 1, rounds=1, seconds=1)  # type: ignore[arg-type]
    assert result["ratios"]["other"] == {"rate": None, "cpu": None}
    what = {"upload": "PNG", "model": "32 px", "connections": 1}
    report = {
        "servers": {subjects.OURS: "commit 1", "other": "other 2"},
        "missing_servers": {"third": "it is not installed."},
        "unmeasured": ["camera-224 x 128"],
        "results": [what | result],
    }
    shown = table(report)
    assert "| PNG | 32 px | 1 | - | - | 0.25 |" in shown
    assert "| PNG | 32 px | 1 | other | 0 | 10.0 ms | 20.0 ms | - | 7 |" in shown
    assert "third did not run: it is not installed." in shown
    assert "not measured: camera-224 x 128." in shown


def test_ratios_where_we_lose_are_bold() -> None:
    """They have fewer requests/s or more CPU time than the other server."""
    ours, other = _Answers(subjects.OURS, {}, [_turn(100, 0.2)]), _Answers("other", {}, [_turn(200, 0.1)])
    result = compare.measure([ours, other], _Limit(), b"", 1, rounds=1, seconds=1)  # type: ignore[arg-type]
    report = {"servers": {subjects.OURS: "", "other": ""}, "missing_servers": {}, "unmeasured": []}
    what = {"upload": "PNG", "model": "32 px", "connections": 1}
    assert "| **0.50** | **4.00** | 0.25 |" in table(report | {"results": [what | result]})


def test_a_full_run_fits_into_45_minutes() -> None:
    """The benchmark's estimate for all servers stays below that."""
    options = compare._options(["--out", "elsewhere.json"])
    assert options.rounds >= 5
    assert options.seconds == 5
    assert compare.expected_s(options, servers=4) <= 45 * 60


def test_sizes_of_the_cells() -> None:
    """The uploads are a small PNG, photos of 65 and 110 KB, and a camera's photo of 2 to 3 MB."""
    sizes = {cell.name: len(cell.make()) for cell in cells.CELLS}
    assert sizes["png-32"] < 1500
    assert 60_000 < sizes["jpeg-65k-32"] == sizes["jpeg-65k-224"] < 70_000
    assert 105_000 < sizes["jpeg-110k-224"] < 115_000
    assert 2_000_000 < sizes["camera-224"] < 3_000_000
