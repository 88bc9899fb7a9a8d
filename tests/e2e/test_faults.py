"""Real faults on real servers: killed and hanging processes, and stops under load. Every request is counted."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.harness.process_group import descriptors, living, resident_bytes
from tests.support.clients import Reply, post_all, refuses_connections
from tests.support.samples import encode
from tests.support.server import (
    PLAIN_HTTP,
    ROOT,
    RunningServer,
    http_processes_of,
    paused,
    serve,
    wait_until,
    worker_of,
    workers_of,
)

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_THREE = (ROOT / "examples" / "digit-3.png").read_bytes()
_DEADLY = encode(Image.new("RGB", (28, 28), (255, 0, 0)))
_CLIENTS = 16
_SLOW_RESTART_S = 300
"""A timeout that no restart reaches, even on a busy machine."""


def _uploads(count: int) -> list[bytes]:
    """Return distinct uploads: sevens, and every third a three."""
    return [(_THREE if number % 3 == 0 else _SEVEN) + number.to_bytes(4, "big") for number in range(count)]


def _check(uploads: list[bytes], replies: list[Reply]) -> None:
    """Check that each upload has exactly one result, and the correct one."""
    assert len(replies) == len(uploads)
    for upload, reply in zip(uploads, replies, strict=True):
        assert reply.status == 200, reply.body
        assert reply.body["predictions"][0]["label"] == ("7" if upload.startswith(_SEVEN) else "3")


class Load:
    """Clients that post in the background; `check` waits for them, and checks every result."""

    def __init__(self, server: RunningServer, requests: int) -> None:
        self._server = server
        self._uploads = _uploads(requests)

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(1)
        by_client = [self._uploads[number::_CLIENTS] for number in range(_CLIENTS)]
        self._replies: Future[list[list[Reply]]] = self._pool.submit(post_all, self._server.port, by_client)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def until_answered(self, share: float) -> None:
        """Wait until about this share of the images has been answered."""
        wait_until(lambda: self._replies.done() or _images(self._server) >= share * len(self._uploads), 120)

    def check(self) -> None:
        """Wait until all clients are done, and check every result."""
        for number, replies in enumerate(self._replies.result(240)):
            _check(self._uploads[number::_CLIENTS], replies)


def _images(server: RunningServer) -> int:
    return sum(worker["images"] for worker in server.get("/info").json()["workers"])


def _restarts(server: RunningServer) -> int:
    return sum(worker["restarts"] for worker in server.get("/info").json()["workers"])


def _worker(server: RunningServer) -> int:
    """Wait for the one worker, which may be starting, and return its process id."""
    found: list[int] = []

    def is_there() -> bool:
        try:
            found.append(worker_of(server))
        except AssertionError:
            return False
        return True

    wait_until(is_there, 60)
    return found[-1]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run a server without a cache, so that every image needs its worker."""
    with serve(cache_size=0, request_timeout_s=_SLOW_RESTART_S, queue_size=64) as running:
        yield running


def test_decoding_comes_before_the_model_on_the_cpu(server: RunningServer) -> None:
    """The worker leaves the cores to the HTTP processes when both want them."""

    def niceness(pid: int) -> int:
        return os.getpriority(os.PRIO_PROCESS, pid)

    own = niceness(server.process.pid)
    assert {niceness(pid) for pid in http_processes_of(server)} == {own}
    assert niceness(worker_of(server)) == min(19, own + 5)


def test_a_worker_killed_under_load_costs_no_request(server: RunningServer) -> None:
    """The worker is killed twice under load; every client gets its result from a successor."""
    before = _restarts(server)
    with Load(server, 1500) as load:
        for share in (0.2, 0.6):
            load.until_answered(share)
            os.kill(_worker(server), signal.SIGKILL)
            wait_until(lambda: server.get("/health").json()["status"] == "ok", 120)
        load.check()
    assert _restarts(server) == before + 2


def test_queued_images_of_a_dead_worker_are_answered(server: RunningServer) -> None:
    """A worker with a full queue is killed: its successor answers the queued and the claimed images."""
    uploads = _uploads(40)
    worker = _worker(server)
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as clients:
        replies = clients.submit(post_all, server.port, [[upload] for upload in uploads])
        wait_until(lambda: _waiting(server) >= 30)
        os.kill(worker, signal.SIGKILL)
        _check(uploads, [reply for [reply] in replies.result(200)])


_ESTABLISHED, _CLOSE_WAIT = "01", "08"
"""States in /proc/net/tcp; the latter is the server's side of a connection that its client has closed."""


def _waiting(server: RunningServer) -> int:
    """Count the open connections to the server, nearly all of which wait for an answer."""
    return _sockets(server, remote=True, state=_ESTABLISHED)


def _sockets(server: RunningServer, *, remote: bool, state: str) -> int:
    port = f":{server.port:04X}"
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(fields[2 if remote else 1].endswith(port) and fields[3] == state for fields in sockets)


def test_a_killed_http_process_is_replaced(server: RunningServer) -> None:
    """The other process is unaffected; the successor serves requests, and the slots are reclaimed."""
    victim, survivor = http_processes_of(server)
    with paused(_worker(server)), ThreadPoolExecutor(64) as clients:
        requests = [clients.submit(_outcome, server, upload) for upload in _uploads(40)]
        wait_until(lambda: _waiting(server) >= 40)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(set(http_processes_of(server)) - {victim}) == 2, 30)
        os.kill(_worker(server), signal.SIGCONT)
        outcomes = [request.result(200) for request in requests]
    assert survivor in http_processes_of(server)
    assert {outcome for outcome in outcomes if outcome is not None} == {200}
    assert 0 < outcomes.count(None) < 40, "only clients of the dead process lost their connection"
    # All 64 slots are free again, so that more images at once than one process has slots are accepted.
    wait_until(lambda: [reply.status for [reply] in post_all(server.port, [[u] for u in _uploads(24)])] == [200] * 24)
    with Load(server, 300) as load:
        load.check()


def _outcome(server: RunningServer, upload: bytes) -> int | None:
    """Return the status, or None if the connection was lost."""
    try:
        return httpx.post(server.url + "/predict", content=upload, timeout=200, **PLAIN_HTTP).status_code
    except httpx.TransportError:
        return None


def test_an_http_process_that_hangs_is_replaced(server: RunningServer) -> None:
    """It is killed, its slots are free again, and meanwhile no probe that is answered says anything but `ok`."""
    before = _http_restarts(server)
    hung, survivor = http_processes_of(server)
    with paused(_worker(server)), ThreadPoolExecutor(64) as clients:
        requests = [clients.submit(_outcome, server, upload) for upload in _uploads(40)]
        wait_until(lambda: _waiting(server) >= 40)
        os.kill(hung, signal.SIGSTOP)
        health = []

        def is_replaced() -> bool:
            with contextlib.suppress(httpx.TransportError):  # this connection went to the hung process
                health.append(httpx.get(server.url + "/health", timeout=1, **PLAIN_HTTP).json()["status"])
            return len(set(http_processes_of(server)) - {hung}) == 2

        wait_until(is_replaced, 60)
        os.kill(_worker(server), signal.SIGCONT)
        outcomes = [request.result(200) for request in requests]
    assert survivor in http_processes_of(server)
    assert {outcome for outcome in outcomes if outcome is not None} == {200}
    assert set(health) == {"ok"}
    wait_until(lambda: 'inference_slots{state="free"} 64.0' in server.get("/metrics").text)
    assert _statuses_at_once(server, 24) == [200] * 24
    assert "made no progress for 8 s; killing it" in server.log.read_text()
    assert _http_restarts(server) == before + 1


def _http_restarts(server: RunningServer) -> float:
    (line,) = (
        line for line in server.get("/metrics").text.splitlines() if line.startswith("inference_http_restarts_total ")
    )
    return float(line.partition(" ")[2])


def _statuses_at_once(server: RunningServer, count: int) -> list[int]:
    return [reply.status for [reply] in post_all(server.port, [[upload] for upload in _uploads(count)])]


@pytest.fixture(scope="module")
def impatient_server() -> Iterator[RunningServer]:
    """Run a server that takes a worker to hang after a second."""
    with serve(cache_size=0, worker_stall_s=1, request_timeout_s=_SLOW_RESTART_S) as running:
        yield running


def test_a_suspended_server_goes_on(impatient_server: RunningServer) -> None:
    """All its processes are stopped, as by a laptop's lid or a frozen container, and none is taken to hang."""
    server = impatient_server
    everyone = [*living(server.process.pid), server.process.pid]
    before = (http_processes_of(server), workers_of(server))
    killings = server.log.read_text().count("made no progress")
    with contextlib.ExitStack() as stack:
        for pid in everyone:
            stack.enter_context(paused(pid))
        resume_at = time.monotonic() + 12
        wait_until(lambda: time.monotonic() > resume_at)
    assert _statuses_at_once(server, 24) == [200] * 24
    assert (http_processes_of(server), workers_of(server)) == before
    assert server.log.read_text().count("made no progress") == killings


def test_of_two_workers_one_is_killed_under_load() -> None:
    """The server stays ready, and every client gets its result from the other worker or the successor."""
    with serve(cache_size=0, workers_per_device=2, request_timeout_s=_SLOW_RESTART_S) as server:
        with Load(server, 1000) as load:
            load.until_answered(0.3)
            victim = workers_of(server)[0]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: server.get("/health").json()["status"] == "degraded")
            assert server.get("/health").status_code == 200
            load.check()
        wait_until(lambda: server.get("/health").json()["workers_ready"] == 2, 120)
        assert _restarts(server) == 1


def test_an_http_process_that_keeps_dying_stops_the_server() -> None:
    """The other processes finish their requests, and the server exits with a non-zero status."""
    with serve(cache_size=0, api_servers=2) as server:

        def has_ended_after_a_kill() -> bool:
            for pid in http_processes_of(server)[-1:]:
                os.kill(pid, signal.SIGKILL)
            return server.process.poll() is not None

        wait_until(has_ended_after_a_kill, 120)
        assert server.process.returncode == 1
        assert "more than 5 times" in server.log.read_text()


def test_a_worker_that_hangs_is_replaced(impatient_server: RunningServer) -> None:
    """A suspended worker is killed after the timeout, and its successor answers the request."""
    hung = _worker(impatient_server)
    os.kill(hung, signal.SIGSTOP)
    response = httpx.post(impatient_server.url + "/predict", content=_SEVEN, timeout=200, **PLAIN_HTTP)
    assert (response.status_code, response.json()["predictions"][0]["label"]) == (200, "7")
    assert _worker(impatient_server) != hung
    assert "made no progress for 1 s" in impatient_server.log.read_text()


def test_a_worker_that_cannot_be_killed_does_not_keep_the_server_running() -> None:
    """The main process exits with status 1, so that its container is restarted."""
    options = {"program": ("-m", "tests.support.unkillable_server"), "worker_stall_s": 1}
    with serve(**options) as server:
        worker = _worker(server)
        os.kill(worker, signal.SIGSTOP)
        assert server.process.wait(120) == 1
        wait_until(lambda: worker not in living(server.process.pid))  # a signal from here does end it
        log = server.log.read_text()
    assert "worker-0 did not end when it was killed: its driver hangs; shutting down" in log
    assert f"process {worker} does not end, although it was killed; it is left behind" in log


def test_an_image_that_crashes_its_worker_does_not_affect_others() -> None:
    """Other images of its batch are answered; after three tries its client gets a 500."""
    options = {"program": ("-m", "tests.support.deadly_server"), "cache_size": 0, "request_timeout_s": _SLOW_RESTART_S}
    with serve(**options, api_servers=1) as server:
        uploads = [*_uploads(12), _DEADLY]
        replies = [reply for [reply] in post_all(server.port, [[upload] for upload in uploads])]
        _check(uploads[:-1], replies[:-1])
        assert (replies[-1].status, replies[-1].body["code"]) == (500, "inference_failed")
        assert _restarts(server) == 3
        # Six deaths in a row exceed the restart budget, but a known cause resets it.
        assert _outcome(server, _DEADLY + b"again") == 500  # three restarts may take longer than a client usually waits
        assert server.predict(_SEVEN).status_code == 200


def test_a_worker_that_keeps_dying_stops_the_server() -> None:
    """Queued images get a 503, and the server exits with a non-zero status."""
    with serve(cache_size=0, request_timeout_s=_SLOW_RESTART_S, api_servers=1) as server, ThreadPoolExecutor(8) as pool:
        worker = _worker(server)
        os.kill(worker, signal.SIGSTOP)
        requests = [pool.submit(_outcome, server, upload) for upload in _uploads(8)]
        wait_until(lambda: _waiting(server) >= 8)
        dead: set[int] = set()

        def has_ended_after_kills() -> bool:
            for pid in set(workers_of(server)) - dead:
                os.kill(pid, signal.SIGKILL)
                dead.add(pid)
            return server.process.poll() is not None

        wait_until(has_ended_after_kills, 240)
        assert [request.result(60) for request in requests] == [503] * 8
        assert server.process.returncode == 1
        assert len(dead) == 6
        assert "more than 5 times" in server.log.read_text()


@pytest.mark.parametrize(
    "keeps_alive", [pytest.param(False, id="one connection per request"), pytest.param(True, id="keep-alive")]
)
def test_a_stop_under_load_loses_no_request(keeps_alive: bool) -> None:
    """It serves until the shutdown delay ends, then closes the port; every response is complete."""
    with serve(cache_size=0, drain_delay_s=2) as server, ThreadPoolExecutor(_CLIENTS) as pool:
        clients = [pool.submit(_post_until_refused, server, upload, keeps_alive) for upload in _uploads(_CLIENTS)]
        wait_until(lambda: _images(server) > 100)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/health/ready").status_code == 503)
        assert server.get("/health").json()["status"] == "stopping"
        assert server.predict(_SEVEN).status_code == 200
        for client in clients:
            statuses = client.result(120)
            assert set(statuses) == {200}
        assert server.process.wait(60) == 0


def _post_until_refused(server: RunningServer, upload: bytes, keeps_alive: bool) -> list[int]:
    """Post repeatedly until the connection is refused; any other failure is an error."""
    statuses = []
    limits = httpx.Limits(max_keepalive_connections=1 if keeps_alive else 0)
    with httpx.Client(timeout=60, limits=limits, **PLAIN_HTTP) as client:
        while True:
            try:
                statuses.append(client.post(server.url + "/predict", content=upload).status_code)
            except httpx.ConnectError:
                return statuses


def test_a_second_signal_stops_at_once() -> None:
    """The server stops although a slow request is in flight."""
    with serve(cache_size=0, drain_timeout_s=3600, request_timeout_s=3600) as server, ThreadPoolExecutor(1) as pool:
        with paused(_worker(server)):
            request = pool.submit(_outcome, server, _SEVEN)
            wait_until(lambda: _waiting(server) >= 1)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: refuses_connections(server.port))
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
            wait_until(lambda: living(server.process.pid) == [])
        assert request.result(60) is None


def _hang_up(server: RunningServer, upload: bytes, after: Callable[[], None]) -> None:
    """Send a complete request, and close the connection without reading the response."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(upload)}\r\n\r\n"
        connection.sendall(head.encode() + upload)
        after()


def test_the_image_of_a_disconnected_client_is_not_run() -> None:
    """The client leaves while its image is queued: the worker skips the image, and the slot is freed."""
    with serve(api_servers=1, queue_size=1, request_timeout_s=_SLOW_RESTART_S) as server:
        worker = _worker(server)
        with paused(worker):
            _hang_up(server, _SEVEN, after=lambda: wait_until(lambda: _misses(server) == 1))
            wait_until(lambda: _sockets(server, remote=False, state=_CLOSE_WAIT) == 0)
            assert server.get("/health/live").status_code == 200  # the server has handled the disconnect
        wait_until(lambda: server.predict(_THREE).status_code == 200)
        assert _images(server) == 1


def _misses(server: RunningServer) -> int:
    return int(server.get("/info").json()["cache"]["misses"])


@pytest.fixture(scope="module")
def lone_server() -> Iterator[RunningServer]:
    """Run a server with one HTTP process, 32 slots and little patience with slow bodies."""
    with serve(api_servers=1, queue_size=32, body_timeout_s=3, cache_size=500) as running:
        yield running


def test_thousands_of_disconnects_leak_nothing(lone_server: RunningServer) -> None:
    """They leak no slots, descriptors or memory."""
    (http,) = http_processes_of(lone_server)

    def wave(count: int) -> None:
        for number in range(count):
            _hang_up(lone_server, _SEVEN + number.to_bytes(4, "big"), after=lambda: None)
        wait_until(lambda: descriptors(http) <= _IDLE_DESCRIPTORS)

    wave(1000)  # so that the cache and the allocator have reached their size
    before = resident_bytes(http)
    wave(4000)
    assert resident_bytes(http) - before < 10 * 2**20
    uploads = [_THREE + number.to_bytes(4, "big") for number in range(32)]
    wait_until(lambda: {reply.status for [reply] in post_all(lone_server.port, [[u] for u in uploads])} == {200})


_IDLE_DESCRIPTORS = 60
"""More descriptors than an HTTP process has open without connections."""


def test_idle_and_slow_connections_block_no_other(lone_server: RunningServer) -> None:
    """With 500 idle or slow connections, other requests succeed; slow bodies get a 408."""
    port = lone_server.port
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in range(500)
        ]
        trickling = connections[::2]
        for connection in trickling:
            connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n\x89PNG")
        assert {reply.status for [reply] in post_all(port, [[upload] for upload in _uploads(32)])} == {200}
        for connection in trickling:
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
