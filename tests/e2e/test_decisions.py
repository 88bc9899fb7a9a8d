"""The decision log of real servers: rotated by Debian's logrotate, on full disks, and sent to a receiver."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.animations import animate, colourful
from tests.support.server import ROOT, RunningServer, serve, wait_until

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_SHA = hashlib.sha256(_SEVEN).hexdigest()
_LOGROTATE = shutil.which("logrotate") or shutil.which("logrotate", path="/usr/sbin:/sbin")
_CONFIGURATION = """\
{path} {{
    size 1
    rotate 1000
    create 0640
    delaycompress
    compress
    {more}
}}
"""


def _decisions(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def _count(server: RunningServer, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(server.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def _written(server: RunningServer) -> float:
    return _count(server, "decision_log_written_total")


def test_every_protocol_is_logged_and_counted(tmp_path: Path) -> None:
    """One decision for each image and frame, with the id that its client got and the hash of what it sent."""
    path = tmp_path / "decisions.jsonl"
    with (
        serve(decision_log=path, thresholds='{"7": 0.9}', api_servers=1) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        responses = {
            "raw": client.post("/predict", content=_SEVEN),
            "hit": client.post("/predict", content=_SEVEN),
            "batch": client.post("/predict/batch", files=[("files", _SEVEN), ("files", b"none"), ("files", _SEVEN)]),
            "hugging face": client.post("/", content=_SEVEN),
            "open inference": client.post(
                "/v2/models/digits/infer", content=_SEVEN, headers={"inference-header-content-length": "0"}
            ),
            "frames": client.post("/predict?frames=2", content=animate(colourful(2), "GIF")),
            "refused": client.post("/predict", content=b"none"),
        }
        wait_until(lambda: _written(server) == 8)
        assert _count(server, "inference_predictions_total") == 8
        assert _count(server, "inference_top_confidence_count") == 8
        assert _count(server, "inference_flagged_total", label="7") == 6
    by_id: dict[str, list[dict[str, Any]]] = {}
    for decision in _decisions(path):
        by_id.setdefault(decision["request_id"], []).append(decision)
    expected = {"raw": 1, "hit": 1, "batch": 2, "hugging face": 1, "open inference": 1, "frames": 2}
    found = {name: len(by_id.get(response.headers["x-request-id"], ())) for name, response in responses.items()}
    assert found == expected | {"refused": 0}
    for name in set(expected) - {"frames"}:
        for decision in by_id[responses[name].headers["x-request-id"]]:
            assert decision["upload_sha256"] == _SHA
            assert (decision["predictions"][0]["label"], decision["flagged"]) == ("7", True)
    assert [by_id[responses[name].headers["x-request-id"]][0]["cache"] for name in ("raw", "hit")] == ["none", "local"]
    assert [one["frame"] for one in by_id[responses["frames"].headers["x-request-id"]]] == [0, 1]
    assert "127.0.0.1" not in path.read_text()


class _Load:
    """Clients that send requests until the context ends."""

    def __init__(self, server: RunningServer, clients: int = 4) -> None:
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self.ids: list[str] = []

    def _run(self) -> None:
        with httpx.Client(base_url=self._server.url, timeout=60) as client:
            while not self._stop.is_set():
                response = client.post("/predict", content=_SEVEN)
                assert response.status_code == 200
                self.ids.append(response.headers["x-request-id"])

    def __enter__(self) -> _Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def _rotate(configuration: Path, state: Path) -> None:
    assert _LOGROTATE is not None
    command = [_LOGROTATE, "--force", "--state", str(state), str(configuration)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(_LOGROTATE is None, reason="needs Debian's package logrotate")
def test_logrotate_loses_no_line(tmp_path: Path) -> None:
    """With `create` and SIGHUP under load, every answered request is in exactly one of the files, in whole lines."""
    folder = tmp_path / "log"
    folder.mkdir(mode=0o755)
    path = folder / "decisions.jsonl"
    with serve(decision_log=path) as server:
        hangup = f"postrotate\n        kill -HUP {server.process.pid}\n    endscript"
        configuration = tmp_path / "logrotate.conf"
        configuration.write_text(_CONFIGURATION.format(path=path, more=hangup))
        configuration.chmod(0o644)
        with _Load(server) as load:
            for _ in range(8):
                before = _written(server)
                wait_until(lambda before=before: _written(server) > before + 50)  # type: ignore[misc]
                _rotate(configuration, tmp_path / "state")
        assert _count(server, "inference_http_restarts_total") == 0
    files = sorted(folder.iterdir())
    assert len(files) >= 8
    for file in folder.glob("*.gz"):
        subprocess.run(["gunzip", str(file)], check=True, timeout=60)
    logged = [decision["request_id"] for decision in _decisions(*folder.iterdir())]
    assert sorted(logged) == sorted(load.ids)


def test_a_log_that_cannot_be_written_fails_no_request(tmp_path: Path) -> None:
    """Its directory is missing at first: requests are answered, failures counted; nothing is lost once it is there."""
    path = tmp_path / "later" / "decisions.jsonl"
    with serve(decision_log=path, api_servers=1) as server:
        for _ in range(20):
            assert server.predict(_SEVEN).status_code == 200
        wait_until(lambda: _count(server, "decision_log_failures_total") >= 1)
        path.parent.mkdir()
        wait_until(lambda: _written(server) == 20)
        log = server.log.read_text()
        assert log.count("decisions can't be logged now: No such file or directory") == 1
    assert len(_decisions(path)) == 20


def test_what_is_queued_is_written_at_the_end(tmp_path: Path) -> None:
    """A clean stop loses no decision."""
    path = tmp_path / "decisions.jsonl"
    with serve(decision_log=path) as server:
        for _ in range(50):
            assert server.predict(_SEVEN).status_code == 200
    assert len(_decisions(path)) == 50


class _Receiver(ThreadingHTTPServer):
    """Keeps the events that it gets, and answers with a status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 202
        self.requests: list[tuple[str, list[dict[str, Any]]]] = []
        self.hold = threading.Event()
        self.hold.set()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        receiver = self.server
        assert isinstance(receiver, _Receiver)
        body = self.rfile.read(int(self.headers["content-length"]))
        receiver.hold.wait(60)
        if receiver.status == 202:
            receiver.requests.append((self.headers["content-type"], json.loads(body)))
        self.send_response(receiver.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def receiver() -> Iterator[_Receiver]:
    server = _Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.hold.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_gets_cloud_events(receiver: _Receiver) -> None:
    """In batches, each event once; while the receiver fails or hangs, requests are answered."""
    url = f"http://127.0.0.1:{receiver.server_port}/events?token=secret-token"
    with serve(decision_log=url, api_servers=1) as server:
        assert server.predict(_SEVEN).status_code == 200
        wait_until(lambda: len(receiver.requests) == 1)
        receiver.status = 503
        for _ in range(10):
            assert server.predict(_SEVEN).status_code == 200
        wait_until(lambda: _count(server, "decision_log_failures_total") >= 1)
        receiver.hold.clear()
        for _ in range(10):
            assert server.predict(_SEVEN).status_code == 200
        receiver.status = 202
        receiver.hold.set()
        wait_until(lambda: _written(server) == 21)
        receiver.status = 400
        assert server.predict(_SEVEN).status_code == 200
        wait_until(lambda: _count(server, "decision_log_dropped_total", cause="refused") == 1)
        assert "secret-token" not in server.log.read_text() + server.get("/info").text
    events = [event for _, batch in receiver.requests for event in batch]
    assert {kind for kind, _ in receiver.requests} == {"application/cloudevents-batch+json; charset=utf-8"}
    assert len(events) == len({event["id"] for event in events}) == 21
    assert {(event["specversion"], event["type"]) for event in events} == {("1.0", "vit-api.decision.v1")}
    assert {event["data"]["upload_sha256"] for event in events} == {_SHA}
