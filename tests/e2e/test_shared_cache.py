"""HTTP processes that share results and wait for each other, on a real server and through its faults."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.clients import Reply, post_all
from tests.support.server import (
    PLAIN_HTTP,
    ROOT,
    RunningServer,
    http_processes_of,
    paused,
    serve,
    wait_until,
    worker_of,
)

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_KEY = "the-operators-key"
_PROCESSES = 4
_CONNECTIONS = 40


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run four HTTP processes and a worker."""
    with serve(api_servers=_PROCESSES, operator_key=_KEY) as running:
        yield running


def _different(count: int, name: str) -> list[bytes]:
    """Return uploads with different bytes that decode to the same image: data after a PNG's end is ignored."""
    return [_SEVEN + f"{name} {number}".encode() for number in range(count)]


def _images(server: RunningServer) -> int:
    """Count the images that the worker ran."""
    return sum(worker["images"] for worker in server.get("/info").json()["workers"])


def _cache(server: RunningServer) -> dict:
    return server.get("/info").json()["cache"]


def _one_by_one(server: RunningServer, uploads: list[bytes], **headers: str) -> list[str]:
    """Send each upload on a new connection, for which the kernel chooses a process; return the sources."""
    return [server.predict(upload, headers=headers).headers["x-cache"] for upload in uploads]


def _at_once(server: RunningServer, upload: bytes) -> list[Reply]:
    """Send an upload on many connections at the same time."""
    replies = [reply for [reply] in post_all(server.port, [[upload]] * _CONNECTIONS)]
    assert [reply.status for reply in replies] == [200] * _CONNECTIONS
    assert {reply.body["predictions"][0]["label"] for reply in replies} == {"7"}
    return replies


def test_a_result_of_any_process_is_a_hit(server: RunningServer) -> None:
    """200 images sent twice run 200 times, whichever processes receive them."""
    uploads, before = _different(200, "twice"), _images(server)
    assert _one_by_one(server, uploads) == ["miss"] * 200
    hits = _cache(server)["shared"]["hits"]
    assert _one_by_one(server, uploads) == ["hit"] * 200
    assert _images(server) == before + 200
    assert _cache(server)["shared"]["hits"] > hits


def test_one_image_on_many_connections_runs_once(server: RunningServer) -> None:
    """One process computes it, the others wait, and all return the same result."""
    for upload in _different(5, "at once"):
        before = _images(server)
        replies = _at_once(server, upload)
        assert sorted({reply.headers["x-cache"] for reply in replies})[-1] == "miss"
        assert [reply.headers["x-cache"] for reply in replies].count("miss") == 1
        assert len({str(reply.body["predictions"]) for reply in replies}) == 1
        assert _images(server) == before + 1


def test_processes_wait_for_the_one_that_computes(server: RunningServer) -> None:
    """An image takes one slot while the worker hangs, and a worker's death fails no request."""
    [upload] = _different(1, "slow")
    before = _images(server)
    with ThreadPoolExecutor(1) as client, paused(worker_of(server)):
        replies = client.submit(_at_once, server, upload)
        wait_until(lambda: server.get("/info").json()["slots"]["queued"] + _running(server) == 1)
    counts = [reply.headers["x-cache"] for reply in replies.result(60)]
    assert counts.count("miss") == 1
    assert counts.count("coalesced") > 0
    assert _images(server) == before + 1


def _running(server: RunningServer) -> int:
    return int(server.get("/info").json()["slots"]["running"])


def test_no_cache_refreshes_the_result_for_all_processes(server: RunningServer) -> None:
    """Each such request runs the model, and all processes then return the newest result."""
    [upload] = _different(1, "fresh")
    before = _images(server)
    assert _one_by_one(server, [upload] * 4, **{"cache-control": "no-cache"}) == ["miss"] * 4
    assert _one_by_one(server, [upload] * 12) == ["hit"] * 12
    assert _images(server) == before + 4


def test_clearing_clears_shared_memory(server: RunningServer) -> None:
    """After a clear, no process finds earlier results."""
    uploads = _different(20, "cleared")
    _one_by_one(server, uploads)
    assert _cache(server)["shared"]["entries"] >= 20
    response = httpx.post(server.url + "/cache/clear", headers={"x-api-key": _KEY}, timeout=30, **PLAIN_HTTP)
    assert response.status_code == 200
    assert _cache(server)["shared"]["entries"] == 0
    assert _one_by_one(server, uploads) == ["miss"] * 20


def test_each_process_renders_any_number_of_classes(server: RunningServer) -> None:
    """A shared prediction is rendered with the number of classes that each request has."""
    [upload] = _different(1, "top_k")
    first = server.predict(upload, "/predict?top_k=10").json()["predictions"]
    for top_k in (1, 3, 10):
        for _ in range(_PROCESSES):
            answer = server.predict(upload, f"/predict?top_k={top_k}")
            assert (answer.headers["x-cache"], answer.json()["predictions"]) == ("hit", first[:top_k])


def test_the_metrics_have_counts_per_tier(server: RunningServer) -> None:
    """`/metrics` and `/info` have the same counts for shared memory."""
    [upload] = _different(1, "counted")
    _one_by_one(server, [upload] * 20)
    lines = dict(line.rsplit(" ", 1) for line in server.get("/metrics").text.splitlines() if line[0] != "#")
    shared = _cache(server)["shared"]
    assert shared["hits"] == float(lines["cache_shared_hits_total"]) > 0
    assert shared["entries"] == float(lines["cache_shared_entries"]) > 0
    assert shared["rejected"] == float(lines["cache_shared_rejected_total"])
    assert float(lines["cache_hits_total"]) >= float(lines["cache_shared_hits_total"])


def test_entries_expire_for_all_processes() -> None:
    """A local copy of a shared result expires no later than the shared one."""
    with serve(api_servers=_PROCESSES, cache_ttl_s=3) as server:
        [upload] = _different(1, "short-lived")
        assert _one_by_one(server, [upload] * 8)[0] == "miss"
        images = _images(server)
        wait_until(lambda: _cache(server)["shared"]["entries"] == 0)
        assert "hit" not in _one_by_one(server, [upload])
        assert _images(server) == images + 1


def test_a_small_cache_is_bounded() -> None:
    """Each process publishes as many results as VIT_API_CACHE_SIZE."""
    with serve(api_servers=2, cache_size=10) as server:
        assert _one_by_one(server, _different(100, "many")) == ["miss"] * 100
        cache = _cache(server)
        assert 10 <= cache["shared"]["entries"] <= 20
        assert cache["entries"] <= 20


def test_results_survive_killed_processes() -> None:
    """After each HTTP process was killed in turn, their successors find all results."""
    uploads = _different(40, "left behind")
    with serve(api_servers=_PROCESSES) as server:
        assert _one_by_one(server, uploads) == ["miss"] * 40
        for pid in http_processes_of(server):
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: _is_replaced(server, pid))
        assert _one_by_one(server, uploads) == ["hit"] * 40
        assert _images(server) == 40
        new = _different(20, "by the successors")
        assert _one_by_one(server, new) == ["miss"] * 20
        assert _one_by_one(server, new + uploads) == ["hit"] * 60


def _is_replaced(server: RunningServer, pid: int) -> bool:
    """Return whether a killed process has a successor and all processes accept connections.

    Its own listening socket may outlive its main thread: it is closed when the last thread has ended.
    """
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = sum(row[1].endswith(f":{server.port:04X}") and row[3] == "0A" for row in rows)
    return not Path(f"/proc/{pid}").exists() and listening == _PROCESSES


def _holders(server: RunningServer) -> set[int]:
    """Return the HTTP processes that hold a claim on a key, from the kernel's list of locks."""
    pids = {int(line.split()[4]) for line in Path("/proc/locks").read_text().splitlines() if " POSIX " in line}
    return pids & set(http_processes_of(server))


def _label_or_none(server: RunningServer, upload: bytes) -> str | None:
    """Send an upload and return its label; None if the connection breaks or is refused because of a kill."""
    try:
        response = server.predict(upload)
    except httpx.TransportError:
        return None
    assert response.status_code == 200, response.text
    return str(response.json()["predictions"][0]["label"])


def _send_all(clients: Executor, server: RunningServer, upload: bytes) -> list[Future[str | None]]:
    """Send an upload many times, until some requests wait for the process that computes it."""
    requests = [clients.submit(_label_or_none, server, upload) for _ in range(_CONNECTIONS)]
    wait_until(lambda: _cache(server)["coalesced"] > 0)
    return requests


def test_a_waiting_process_replaces_a_killed_one() -> None:
    """A waiting process takes over while the image is still in the queue."""
    [upload] = _different(1, "taken over")
    with serve(api_servers=2) as server, ThreadPoolExecutor(_CONNECTIONS) as clients:
        _one_by_one(server, _different(1, "warm-up"))
        before = _images(server)
        with paused(worker_of(server)):
            requests = _send_all(clients, server, upload)
            [first] = _holders(server)
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: len(_holders(server) - {first}) == 1)
        assert {request.result(60) for request in requests} - {None} == {"7"}
        assert _images(server) <= before + 2


def test_a_suspended_process_is_not_waited_for_until_the_deadline() -> None:
    """After half of the time limit another process computes the image."""
    [upload] = _different(1, "suspended")
    # Half of it is less than the 8 s after which a hung process is replaced.
    with serve(api_servers=2, request_timeout_s=10) as server, ThreadPoolExecutor(_CONNECTIONS) as clients:
        _one_by_one(server, _different(1, "warm-up"))
        with contextlib.ExitStack() as suspended:
            with paused(worker_of(server)):
                requests = _send_all(clients, server, upload)
                [first] = _holders(server)
                suspended.enter_context(paused(first))
            wait_until(lambda: any(request.done() for request in requests))
            assert {request.result() for request in requests if request.done()} == {"7"}
        assert {request.result(60) for request in requests} - {None} == {"7"}
