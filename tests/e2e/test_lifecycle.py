"""Start and stop: a failed start reports its reason, and a stop leaves no processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import pytest

from benchmarks.harness import servers
from benchmarks.harness.process_group import living
from benchmarks.harness.servers import free_port
from tests.support import forked_servers
from tests.support.clients import refuses_connections
from tests.support.samples import edit_json, make_checkpoint
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, environment, paused, serve, wait_until, worker_of


def _start_and_fail(**settings: object) -> subprocess.CompletedProcess[str]:
    return forked_servers.start_and_end(**{"host": "127.0.0.1", "port": free_port(), "api_servers": 1} | settings)


def test_an_unknown_model_stops_the_start(tmp_path: Path) -> None:
    """The error is a single line, without a traceback."""
    result = _start_and_fail(model=tmp_path / "nothing")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr


def test_the_links_of_a_kubernetes_service_are_ignored(tmp_path: Path) -> None:
    """With a Service named `vit-api`, VIT_API_PORT is a URL; one warning says so, and PORT counts."""
    port = free_port()
    links = {"VIT_API_PORT": "tcp://10.96.12.7:7860", "VIT_API_SERVICE_HOST": "10.96.12.7", "PORT": str(port)}
    variables = environment(model="digits", host="127.0.0.1", api_servers=1, cpu_threads=1) | links
    command, log = [sys.executable, str(ROOT / "server.py")], tmp_path / "log"
    url, start = f"http://127.0.0.1:{port}/health", forked_servers.start
    with servers.running(command, url, cwd=ROOT, environment=variables, log=log, start=start):
        assert log.read_text().count("VIT_API_SERVICE_HOST") == 1


def test_an_unsupported_processor_is_refused_with_the_reason(tmp_path: Path) -> None:
    """The message says that a processor that pads is not supported."""
    folder = make_checkpoint(tmp_path / "model")
    edit_json(folder / "preprocessor_config.json", do_pad=True)
    result = _start_and_fail(model=folder)
    assert result.returncode != 0
    assert "do_pad" in result.stderr


def test_a_taken_port_stops_the_start() -> None:
    """A server does not start on a port that another one uses."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        result = _start_and_fail(model="digits", port=other.getsockname()[1])
    assert result.returncode != 0
    assert "Address already in use" in result.stderr


def test_a_second_server_on_the_same_port_is_refused(digits_server: RunningServer) -> None:
    """SO_REUSEPORT does not let two servers share a port."""
    result = _start_and_fail(model="digits", port=digits_server.port)
    assert "Address already in use" in result.stderr
    assert digits_server.get("/health").status_code == 200


def test_a_worker_that_cannot_start_stops_the_server(tmp_path: Path) -> None:
    """Weights that don't fit the configuration stop all processes, with a non-zero exit status."""
    folder = make_checkpoint(tmp_path / "model")
    edit_json(folder / "config.json", hidden_size=48)
    result = _start_and_fail(model=folder)
    assert result.returncode == 1
    assert "ended unexpectedly" in result.stderr


@pytest.mark.parametrize(
    ("number", "is_fresh"),
    [pytest.param(signal.SIGTERM, False, id="SIGTERM"), pytest.param(signal.SIGINT, True, id="SIGINT")],
)
def test_a_signal_stops_every_process(number: signal.Signals, is_fresh: bool) -> None:
    """The exit status is 0, no process is left, and the port is free."""
    with serve(is_fresh=is_fresh) as server:
        group = server.process.pid
        assert len(living(group)) >= 4
        server.process.send_signal(number)
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.log.read_text()
        _wait_until_gone(group)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", server.port))


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, id="systemd"), pytest.param(signal.SIGINT, id="Ctrl-C in a terminal")]
)
def test_a_signal_to_all_processes_drains_as_any_stop(number: signal.Signals) -> None:
    """The HTTP processes and the workers serve until the main process stops them, and none is started again."""
    with serve(drain_delay_s=2, cache_size=0) as server:
        before = living(server.process.pid)
        os.killpg(server.process.pid, number)
        wait_until(lambda: server.get("/health").json()["status"] == "stopping")
        assert server.predict((ROOT / "examples" / "digit-7.png").read_bytes()).status_code == 200
        assert set(living(server.process.pid)) <= set(before)
        assert server.process.wait(60) == 0
        assert "ERROR" not in server.log.read_text()
        assert "ended unexpectedly" not in server.log.read_text()


@pytest.mark.parametrize(
    "send", [pytest.param(os.kill, id="main process"), pytest.param(os.killpg, id="process group")]
)
def test_a_request_in_flight_is_answered_before_the_stop(send: Callable[[int, int], None]) -> None:
    """After SIGTERM, new connections are refused and accepted requests are answered."""
    upload = (ROOT / "examples" / "digit-7.png").read_bytes()
    with serve(queue_size=1, api_servers=1, cache_size=0) as server, ThreadPoolExecutor(2) as clients:
        with paused(worker_of(server)):
            # Of two requests for the one slot, one is refused: then the other is in flight.
            requests = [clients.submit(server.predict, upload) for _ in range(2)]
            turned_away, in_flight = wait(requests, timeout=30, return_when=FIRST_COMPLETED)
            assert [request.result().status_code for request in turned_away] == [503]
            send(server.process.pid, signal.SIGTERM)
            wait_until(lambda: refuses_connections(server.port))
            answer = in_flight.pop()
            assert not answer.done()
        assert answer.result(60).json()["predictions"][0]["label"] == "7"
        assert server.process.wait(60) == 0


def test_no_orphan_survives_the_main_process() -> None:
    """If the main process is killed, all others end, and the port is free."""
    with serve() as server:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(60)
        _wait_until_gone(server.process.pid)
        wait_until(lambda: _is_free(server.port))  # a socket may outlive its process's main thread


def _is_free(port: int) -> bool:
    with socket.socket() as listener, contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # despite connections in TIME_WAIT
        listener.bind(("127.0.0.1", port))
        listener.listen()
        return True
    return False


def _wait_until_gone(group: int) -> None:
    wait_until(lambda: living(group) == [])


def test_not_ready_until_the_worker_is() -> None:
    """While the model loads, the server is alive but not ready, and refuses images."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "server.py")],
        env=environment(model="digits", host="127.0.0.1", port=port, api_servers=1),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        answers: list[httpx.Response] = []

        def has_answered() -> bool:
            with contextlib.suppress(httpx.TransportError):
                answers.append(httpx.get(url + "/health", timeout=30, **PLAIN_HTTP))
            return bool(answers)

        wait_until(has_answered, 60)
        (health,) = answers
        assert (health.status_code, health.json()["status"]) == (503, "starting")
        refused = httpx.post(url + "/predict", content=b"x", timeout=30, **PLAIN_HTTP)
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert refused.headers["retry-after"].isdecimal()
        assert httpx.get(url + "/health/live", timeout=30, **PLAIN_HTTP).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_sigterm_to_the_first_process_of_a_container() -> None:
    """Process 1 of a namespace has no default signal actions, but stops on SIGTERM with status 0."""
    namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("making a process namespace takes unshare and the right to use it")
    port = free_port()
    process = subprocess.Popen(
        [*namespace, sys.executable, str(ROOT / "server.py")],
        env=environment(model="digits", host="127.0.0.1", port=port, api_servers=1),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}/health"
        wait_until(lambda: _status_of(url) == 200, 120)
        (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        assert process.wait(60) == 0
        wait_until(lambda: _status_of(url) is None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def _status_of(url: str) -> int | None:
    try:
        return httpx.get(url, timeout=30, **PLAIN_HTTP).status_code
    except httpx.TransportError:
        return None
