"""From the start until ready: the port is answered at once, no connection is lost, and signals end it in each phase."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.harness.process_group import kinds, living
from benchmarks.harness.servers import free_port
from tests.support import forked_servers
from tests.support.fake_hub import NAME, FakeHub, hub_server
from tests.support.samples import make_checkpoint
from tests.support.server import ROOT, environment, wait_until

DIGIT = (ROOT / "examples" / "digit-7.png").read_bytes()
LARGE = {"torch", "transformers", "litserve", "fastapi", "starlette", "uvicorn", "numpy", "PIL", "redis", "httpx"}
signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
targets = pytest.mark.parametrize(
    "send", [pytest.param(os.kill, id="main process"), pytest.param(os.killpg, id="process group")]
)


@dataclass(frozen=True)
class Starting:
    """A server that starts."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        """Return the response; its body is already read into `content`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            response = connection.getresponse()
            response.content = response.read()  # type: ignore[attr-defined]
            return response

    def health(self) -> dict[str, object]:
        """Return the body of /health; empty if nothing listens yet."""
        with contextlib.suppress(ConnectionRefusedError):
            return dict(json.loads(self.ask("GET", "/health").content))  # type: ignore[attr-defined]
        return {}


@contextlib.contextmanager
def starting(
    folder: Path,
    variables: Mapping[str, str] | None = None,
    start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
    **settings: object,
) -> Iterator[Starting]:
    """Start a server and don't wait for it."""
    port, log = free_port(), folder / "log"
    defaults = {"host": "127.0.0.1", "port": port, "api_servers": 2, "cpu_threads": 1, "model": "digits"}
    with log.open("wb") as output:
        process = start(
            [sys.executable, str(ROOT / "server.py")],
            cwd=ROOT,
            env=environment(**(defaults | settings)) | dict(variables or {}),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Starting(port, process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = make_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    """Run a hub whose download of the weights takes longer than any test."""
    with hub_server(files) as server:
        server.weights_take_s = 600.0
        yield server
        server.weights_take_s = 0.0


def _from(hub: FakeHub, folder: Path) -> dict[str, str]:
    cache = folder / "cache"
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
    }


def _is_downloading(hub: FakeHub) -> bool:
    return "model.safetensors" in hub.requested_files()


def test_the_port_is_answered_before_any_large_package_is_imported() -> None:
    """The imports until then, by which the first answer comes within a second."""
    code = f"import sys, vit_api.startup; print({{m.partition('.')[0] for m in sys.modules}} & {LARGE})"
    environment_ = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment_, check=True)
    assert result.stdout.strip() == "set()"


def test_it_is_alive_but_not_ready_while_the_model_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    """Probes are answered, the reason is given, and an image is refused for now; then the model is served."""
    with starting(tmp_path, _from(hub, tmp_path), model=NAME) as server:
        wait_until(lambda: _is_downloading(hub), 60)
        assert server.ask("GET", "/health/live").status == 200
        ready = server.ask("GET", "/health/ready")
        assert ready.status == 503
        assert "downloads" in json.loads(ready.content)["reason"]  # type: ignore[attr-defined]
        refused = server.ask("POST", "/predict", DIGIT * 1000)
        assert refused.status == 503
        assert refused.headers["retry-after"] == "5"
        assert json.loads(refused.content)["code"] == "not_ready"  # type: ignore[attr-defined]
        assert set(kinds(server.process.pid).values()) == {"main", "http", "other"}


def test_a_download_that_fails_ends_the_process_with_one_line(hub: FakeHub, tmp_path: Path) -> None:
    """Though the port was answered before."""
    hub.file_refusal = (403, "GatedRepo")
    with starting(tmp_path, _from(hub, tmp_path), model=NAME) as server:
        assert server.process.wait(60) == 1
        assert server.log.read_text().count("\n") == 1
        assert server.log.read_text().startswith(f"error: The model '{NAME}' can't be used: access to it is restricted")
        wait_until(lambda: living(server.process.pid) == [])


@signals
@targets
def test_a_signal_during_the_download_ends_it(
    hub: FakeHub, tmp_path: Path, number: signal.Signals, send: Callable[[int, int], None]
) -> None:
    """With status 0, no process left and nothing in the log."""
    with starting(tmp_path, _from(hub, tmp_path), model=NAME) as server:
        wait_until(lambda: _is_downloading(hub), 60)
        send(server.process.pid, number)
        assert server.process.wait(10) == 0
        wait_until(lambda: living(server.process.pid) == [], 10)
        assert "Traceback" not in server.log.read_text()
        assert "ERROR" not in server.log.read_text()


@targets
def test_a_signal_while_the_model_loads_ends_it(tmp_path: Path, send: Callable[[int, int], None]) -> None:
    """As soon as the worker's process exists; it imports torch for seconds."""
    with starting(tmp_path) as server:
        wait_until(lambda: "worker" in kinds(server.process.pid).values(), 60)
        send(server.process.pid, signal.SIGTERM)
        assert server.process.wait(10) == 0
        wait_until(lambda: living(server.process.pid) == [], 10)
        assert "ERROR" not in server.log.read_text()


def test_a_signal_at_any_moment_of_the_start_ends_it(tmp_path: Path) -> None:
    """At each of its first answers, whatever is imported then."""
    for answers in range(1, 40, 6):
        with starting(tmp_path) as server:
            for _ in range(answers):
                wait_until(lambda: server.health().get("status") == "starting", 60)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
            wait_until(lambda: living(server.process.pid) == [])
            assert "Traceback" not in server.log.read_text()


def test_no_connection_is_lost_from_the_first_answer_until_ready(tmp_path: Path) -> None:
    """Clients that connect all the time get a whole response each, through the take-over by two HTTP processes."""
    seen: Counter[int | str] = Counter()
    is_due, stop = threading.Event(), threading.Event()

    def ask_all_the_time(server: Starting) -> None:
        requests = itertools.cycle([("GET", "/health/live", None), ("POST", "/predict", DIGIT * 100)])
        while not stop.is_set():
            try:
                seen[server.ask(*next(requests)).status] += 1
            except (OSError, http.client.HTTPException) as error:
                seen[repr(error)] += 1
            is_due.wait(0.01)  # no pause while the HTTP processes take over; before and after, the server has the cores

    with starting(tmp_path) as server:
        wait_until(lambda: bool(server.health()), 60)
        clients = [threading.Thread(target=ask_all_the_time, args=(server,)) for _ in range(3)]
        for client in clients:
            client.start()
        try:
            wait_until(lambda: _http_processes(server) > 1, 120)
            is_due.set()
            wait_until(lambda: _http_processes(server) == 2, 120)  # without the one that answered until now
            is_due.clear()
            wait_until(lambda: server.health()["status"] == "ok", 120)
        finally:
            stop.set()
            for client in clients:
                client.join()
        # 400: once the server is ready, for a file of a hundred images in a row.
        assert set(seen) <= {200, 503, 400}, seen
        assert seen[503] > 0


def _http_processes(server: Starting) -> int:
    return list(kinds(server.process.pid).values()).count("http")


def test_a_connection_from_before_the_take_over_is_answered(tmp_path: Path) -> None:
    """A client that connects early and sends its request late gets a response, not a reset."""
    with starting(tmp_path, header_timeout_s=60) as server:
        wait_until(lambda: bool(server.health()), 60)
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as early:
            wait_until(lambda: server.health().get("workers") == 1, 60)  # an HTTP process has answered this
            early.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            assert early.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_the_answering_process_is_gone_once_the_others_have_taken_over(tmp_path: Path) -> None:
    """And is reaped: no zombie is left."""
    with starting(tmp_path, start=forked_servers.start) as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        wait_until(lambda: server.health().get("status") == "ok", 120)
        # Two HTTP processes and the worker.
        wait_until(lambda: len(children.read_text().split()) == 3)


def test_the_killed_answering_process_costs_no_connection(tmp_path: Path, hub: FakeHub) -> None:
    """A connection waits for the HTTP processes; the server starts all the same."""
    with starting(tmp_path, _from(hub, tmp_path), model=NAME) as server:
        wait_until(lambda: _is_downloading(hub), 60)
        (answering,) = (pid for pid, kind in kinds(server.process.pid).items() if kind == "http")
        os.kill(answering, signal.SIGKILL)
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as early:
            early.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            hub.weights_take_s = 0.0
            time_limit = time.monotonic() + 60
            while not (answer := early.recv(65536)) and time.monotonic() < time_limit:
                pass
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
