"""Repeated images on real servers: hits, single flight, a shared Redis and its faults, clearing."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.harness.servers import free_port
from tests.support.clients import Reply, post_all
from tests.support.redis_server import RedisServer, redis_server
from tests.support.samples import make_checkpoint
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, paused, serve, wait_until, worker_of

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_THREE = (ROOT / "examples" / "digit-3.png").read_bytes()
_KEY = "the-operators-key"
_PASSWORD = "hidden-word"
_WAITERS = 40


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run a server with one HTTP process, so that all requests use one cache, and with a small cache."""
    with serve(api_servers=1, queue_size=4, operator_key=_KEY) as running:
        yield running


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """Run a Redis server."""
    with redis_server() as running:
        yield running


@dataclass(frozen=True)
class Replicas:
    """Two servers that share a Redis."""

    first: RunningServer
    second: RunningServer
    redis: RedisServer


@pytest.fixture(scope="module")
def replicas() -> Iterator[Replicas]:
    """Run two servers that share a Redis, each with one HTTP process that uses it already."""
    with redis_server() as redis:
        settings = {"redis_url": redis.url, "api_servers": 1, "operator_key": _KEY}
        with serve(**settings) as first, serve(**settings) as second:
            _until_connected(first, 1)
            _until_connected(second, 1)
            yield Replicas(first, second, redis)


@pytest.fixture(scope="module")
def without_redis() -> Iterator[RunningServer]:
    """Run a server that is configured with a Redis that does not run."""
    with serve(redis_url=f"redis://:{_PASSWORD}@127.0.0.1:{free_port()}/0", operator_key=_KEY) as running:
        yield running


@pytest.fixture(scope="module")
def two_processes() -> Iterator[RunningServer]:
    """Run a server with two HTTP processes."""
    with serve(api_servers=2, operator_key=_KEY) as running:
        yield running


def _different(count: int, start: bytes = _SEVEN) -> list[bytes]:
    """Return uploads with different bytes that decode to the same image: data after a PNG's end is ignored."""
    return [start + number.to_bytes(4, "big") for number in range(count)]


def _images(server: RunningServer) -> int:
    """Count the images that the workers ran."""
    return sum(worker["images"] for worker in server.get("/info").json()["workers"])


def _cache(server: RunningServer) -> dict:
    return server.get("/info").json()["cache"]


def _requested(server: RunningServer) -> int:
    """Count the images that clients requested, those in flight included."""
    cache = _cache(server)
    return int(cache["hits"] + cache["misses"] + cache["coalesced"])


def _label(response: httpx.Response | Reply) -> str:
    body = response.json() if isinstance(response, httpx.Response) else response.body
    return str(body["predictions"][0]["label"])


def test_a_repeated_image_is_a_hit_in_any_form(server: RunningServer) -> None:
    """Raw and form uploads with any top_k share a cache entry: the worker runs the image once."""
    upload, before = _SEVEN + b"repeated", _images(server)
    first = server.predict(upload, "/predict?top_k=1")
    hits = [
        server.predict(upload, "/predict?top_k=20"),
        httpx.post(server.url + "/predict", files={"file": upload}, **PLAIN_HTTP),
    ]
    assert (first.headers["x-cache"], first.json()["cached"]) == ("miss", False)
    for hit in hits:
        assert (hit.headers["x-cache"], hit.json()["cached"]) == ("hit", True)
        assert "x-batch-size" not in hit.headers
    assert [len(response.json()["predictions"]) for response in (first, *hits)] == [1, 10, 5]
    assert hits[0].json()["predictions"][0] == first.json()["predictions"][0]
    assert _images(server) == before + 1


@pytest.mark.parametrize("size", [pytest.param(3_000, id="in one piece"), pytest.param(200_000, id="in several")])
def test_requests_that_repeat_a_head_are_like_any_other(server: RunningServer, size: int) -> None:
    """On one connection and on several: another image is a miss, each has an id, and after a clear nothing is known."""
    upload, before, images = _SEVEN + bytes(size) + b"same head", _requested(server), _images(server)
    other = _THREE + b"other".rjust(len(upload) - len(_THREE))
    with httpx.Client(base_url=server.url) as one, httpx.Client(base_url=server.url) as another:
        replies = [client.post("/predict", content=upload) for client in (one, one, another, one, one, another)]
        replies += [one.post("/predict", content=content) for content in (other, upload, other)]
        assert [reply.headers["x-cache"] for reply in replies] == ["miss", *["hit"] * 5, "miss", "hit", "hit"]
        assert one.post("/cache/clear", headers={"x-api-key": _KEY}).status_code == 200
        assert one.post("/predict", content=upload).headers["x-cache"] == "miss"
    labels = [_label(reply) for reply in replies]
    assert labels == ["7"] * 6 + ["3", "7", "3"]
    assert len({reply.headers["x-request-id"] for reply in replies}) == len(replies)
    assert _requested(server) == before + len(replies) + 1
    assert _images(server) == images + 3


def _infer_body(upload: bytes, *outputs: str, **parameters: object) -> tuple[bytes, dict[str, str]]:
    """Return a request of the Open Inference Protocol with a file as binary data, and its headers."""
    data = len(upload).to_bytes(4, "little") + upload
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": name} for name in outputs], "parameters": parameters})
    return head.encode() + data, {"inference-header-content-length": str(len(head))}


@pytest.mark.parametrize(
    ("path", "options"),
    [
        pytest.param("/predict", {}, id="predict"),
        pytest.param("/", {}, id="hugging face"),
        pytest.param("/v2/models/digits/infer", {"outputs": ["labels"]}, id="v2 json"),
        pytest.param("/v2/models/digits/infer", {"outputs": ["labels"], "binary_data_output": True}, id="v2 binary"),
    ],
)
def test_the_same_bytes_get_the_same_response_however_often(
    server: RunningServer, path: str, options: dict[str, Any]
) -> None:
    """The first hit, one with a known head, and those of which every byte is known differ in id and time only."""
    outputs = options.pop("outputs", None)
    upload = _SEVEN + path.encode() + repr(sorted(options)).encode()
    body, headers = (upload, {}) if outputs is None else _infer_body(upload, *outputs, **options)
    before = _cache(server)["hits"]
    lines = [
        f"POST {path} HTTP/1.1",
        "host: a",
        f"content-length: {len(body)}",
        *map(": ".join, headers.items()),
        "",
        "",
    ]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        missed, *hits = [_exchange(connection, "\r\n".join(lines).encode() + body) for _ in range(7)]
    assert (missed.status, missed.headers["x-cache"]) == (200, "miss")
    shown = {(_stable_headers(one), re.sub(rb'"processing_time_ms":[0-9.]+', b"", one.body)) for one in hits}
    assert len(shown) == 1, shown
    assert all(one.status == 200 and one.headers["x-cache"] == "hit" for one in hits)
    assert len({one.headers["x-request-id"] for one in hits}) == len(hits)
    assert _cache(server)["hits"] == before + len(hits)


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def _exchange(connection: socket.socket, request: bytes) -> _Answer:
    """Send a request in one piece, which few HTTP clients of Python do, and return its response."""
    connection.sendall(request)
    response = http.client.HTTPResponse(connection, method="POST")
    response.begin()
    return _Answer(response.status, dict(response.getheaders()), response.read())


def _stable_headers(answer: _Answer) -> tuple[tuple[str, str], ...]:
    varying = ("date", "x-request-id", "x-compute-time", "x-total-time", "content-length")
    return tuple(sorted((name, value) for name, value in answer.headers.items() if name not in varying))


def test_no_cache_computes_and_refreshes(server: RunningServer) -> None:
    """Requests with `Cache-Control: no-cache` are misses, and refresh the entry that other requests hit."""
    upload, before = _SEVEN + b"fresh", _images(server)
    headers = {"cache-control": "no-cache"}
    assert [server.predict(upload, headers=headers).headers["x-cache"] for _ in range(2)] == ["miss"] * 2
    assert server.predict(upload).headers["x-cache"] == "hit"
    assert _images(server) == before + 2


def test_errors_are_not_cached(server: RunningServer) -> None:
    """Each request gets the same error, and no entry is added."""
    entries = _cache(server)["entries"]
    for _ in range(2):
        response = server.predict(_SEVEN[:200])
        assert (response.status_code, response.json()["code"]) == (400, "bad_image")
        assert "x-cache" not in response.headers
    assert _cache(server)["entries"] == entries


def test_identical_images_at_once_are_one_inference(server: RunningServer) -> None:
    """With four slots, forty concurrent requests with one image all succeed, and the model runs it once."""
    upload, before, asked = _SEVEN + b"at once", _images(server), _requested(server)
    with ThreadPoolExecutor(_WAITERS + 1) as clients, paused(worker_of(server)):
        requests = [clients.submit(server.predict, upload) for _ in range(_WAITERS)]
        other = clients.submit(server.predict, _THREE + b"at once")
        wait_until(lambda: _requested(server) == asked + _WAITERS + 1)
        assert not any(request.done() for request in requests)
    replies = [request.result(60) for request in requests]
    assert [_label(reply) for reply in replies] == ["7"] * _WAITERS
    assert _label(other.result(60)) == "3"
    sources = sorted(reply.headers["x-cache"] for reply in replies)
    assert sources == ["coalesced"] * (_WAITERS - 1) + ["miss"]
    assert not any(reply.json()["cached"] for reply in replies)
    assert _images(server) == before + 2


def test_repeats_within_one_request(server: RunningServer) -> None:
    """Repeated images in a request are computed once, and results keep their order; the next request hits."""
    uploads = [upload + b"in a batch" for upload in (_SEVEN, _THREE, _SEVEN, _SEVEN, _THREE)]
    before = _images(server)
    for is_cached in (False, True):
        files = [("files", upload) for upload in uploads]
        results = httpx.post(server.url + "/predict/batch", files=files, timeout=60, **PLAIN_HTTP).json()
        assert [result["predictions"][0]["label"] for result in results] == ["7", "3", "7", "7", "3"]
        assert [result["cached"] for result in results] == [is_cached] * 5
    assert _images(server) == before + 2


def test_a_waiter_that_disconnects_affects_no_other(server: RunningServer) -> None:
    """Of three clients of one image, the first hangs up; the others get their answers, from one inference."""
    upload, before, asked = _SEVEN + b"hangs up", _images(server), _requested(server)
    with ThreadPoolExecutor(2) as clients, paused(worker_of(server)):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(upload)}\r\n\r\n"
            connection.sendall(head.encode() + upload)
            wait_until(lambda: _requested(server) == asked + 1)
            requests = [clients.submit(server.predict, upload) for _ in range(2)]
            wait_until(lambda: _requested(server) == asked + 3)
        wait_until(lambda: server.get("/health/live").status_code == 200)
    assert [_label(request.result(60)) for request in requests] == ["7", "7"]
    assert _images(server) == before + 1


def test_entries_expire() -> None:
    """They are evicted even if no further request arrives."""
    with serve(cache_ttl_s=1) as server:
        post_all(server.port, [[_SEVEN]] * 8)
        assert _cache(server)["misses"] >= 1
        wait_until(lambda: _cache(server)["entries"] == 0)
        assert server.predict(_SEVEN).headers["x-cache"] == "miss"


def test_the_cache_can_be_off() -> None:
    """With the cache off, each identical image is computed, and `/info` has no cache statistics."""
    with serve(cache_size=0) as server:
        assert [server.predict(_SEVEN).headers["x-cache"] for _ in range(3)] == ["miss"] * 3
        assert _images(server) == 3
        assert _cache(server) is None


def _clear(server: RunningServer, **headers: str) -> httpx.Response:
    return httpx.post(server.url + "/cache/clear", headers=headers, timeout=30, **PLAIN_HTTP)


def test_clearing_needs_a_configured_key(digits_server: RunningServer) -> None:
    """Without an operator key, clearing is refused, even with an empty key."""
    for headers in ({}, {"x-api-key": ""}, {"authorization": "Bearer"}):
        response = _clear(digits_server, **headers)
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": "wrong"},
        {"x-api-key": _KEY + "x"},
        {"authorization": f"Basic {_KEY}"},
        {"authorization": _KEY},
        {"authorization": "Bearer wrong"},
    ],
)
def test_only_the_operator_may_clear(server: RunningServer, headers: dict[str, str]) -> None:
    """Other clients get a 401 that names the scheme, and the cache is not cleared."""
    server.predict(_SEVEN)
    response = _clear(server, **headers)
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"].startswith('Bearer realm="vit-api"')
    assert server.predict(_SEVEN).headers["x-cache"] == "hit"


@pytest.mark.parametrize("headers", [{"x-api-key": _KEY}, {"authorization": f"bearer {_KEY}"}])
def test_clearing_reaches_every_process(two_processes: RunningServer, headers: dict[str, str]) -> None:
    """After one HTTP process handled the clear, an image that both had cached is computed again."""
    server = two_processes
    wait_until(lambda: post_all(server.port, [[_SEVEN]] * 8) and _cache(server)["entries"] == 2)
    assert _clear(server, **headers).json() == {"entries": 2, "redis_entries": None}
    misses = _cache(server)["misses"]
    wait_until(lambda: post_all(server.port, [[_SEVEN]] * 8) and _cache(server)["entries"] == 2)
    assert _cache(server)["misses"] == misses + 1
    assert {reply.headers["x-cache"] for [reply] in post_all(server.port, [[_SEVEN]] * 16)} == {"hit"}


def _until_connected(server: RunningServer, processes: int) -> None:
    wait_until(lambda: _cache(server)["redis"]["processes_connected"] == processes)


def test_two_replicas_share_their_results(replicas: Replicas) -> None:
    """A result computed by one is a hit on the other, and clearing one clears Redis."""
    first, second, redis = replicas.first, replicas.second, replicas.redis
    hits = _cache(second)["redis"]["hits"]

    def answers_for_the_other(upload: bytes) -> bool:
        before = _images(second)
        assert _label(_computed_once(first, upload, redis)) == "7"
        answer = second.predict(upload)
        assert _label(answer) == "7"
        assert answer.json()["cached"] is (answer.headers["x-cache"] == "hit") is (_images(second) == before)
        return _cache(second)["redis"]["hits"] == hits + 1

    # A busy machine may keep Redis from answering in time; the next image has another chance.
    assert any(answers_for_the_other(upload + b"shared") for upload in _different(20))
    entries = len(redis.entries())
    assert _clear(first, **{"x-api-key": _KEY}).json()["redis_entries"] == entries
    assert redis.entries() == {}


def test_a_corrupt_value_in_redis_is_replaced(replicas: Replicas) -> None:
    """The result is correct; the value is counted and overwritten."""
    first, second, redis = replicas.first, replicas.second, replicas.redis
    rejected = _cache(second)["redis"]["rejected"]

    def is_rejected(upload: bytes) -> bool:
        _computed_once(first, upload, redis)
        for name in redis.entries():
            redis.client.set(name, b"\x80\x04poison")
        answer = second.predict(upload)
        assert (_label(answer), answer.headers["x-cache"]) == ("7", "miss")
        return _cache(second)["redis"]["rejected"] == rejected + 1

    assert any(is_rejected(upload + b"poisoned") for upload in _different(20))
    wait_until(lambda: b"\x80\x04poison" not in list(redis.entries().values())[-1:])


def _computed_once(server: RunningServer, upload: bytes, redis: RedisServer) -> httpx.Response:
    """Let a server compute an upload, and wait until Redis has it."""
    entries = len(redis.entries())
    answer = server.predict(upload)
    assert answer.headers["x-cache"] == "miss"
    wait_until(lambda: len(redis.entries()) == entries + 1)
    return answer


def test_another_checkpoint_of_the_same_name_shares_nothing(redis: RedisServer, tmp_path: Path) -> None:
    """Checkpoints with the same name and different weights have separate entries in Redis."""
    for number in (1, 2):
        folder = make_checkpoint(tmp_path / str(number) / "model", classes=9 + number)
        with serve(folder, redis_url=redis.url, api_servers=1) as server:
            _until_connected(server, 1)
            assert server.predict(_SEVEN).headers["x-cache"] == "miss"
            wait_until(lambda expected=number: len(redis.entries()) == expected)


def test_redis_killed_and_restarted_under_load(redis: RedisServer) -> None:
    """Every request gets the right result while Redis restarts; afterwards Redis is used again."""
    uploads = _different(200) + _different(200, _THREE)
    with serve(redis_url=redis.url, cache_size=25) as server:
        _until_connected(server, 2)

        def load() -> list[Reply]:
            return [reply for replies in post_all(server.port, [uploads[n::8] for n in range(8)]) for reply in replies]

        with ThreadPoolExecutor(1) as client:
            replies = []
            for fault in (redis.kill, redis.start, redis.kill, redis.start):
                loading = client.submit(load)
                asked = _requested(server)
                wait_until(lambda asked=asked: _requested(server) > asked + 50)
                fault()
                replies.append(loading.result(120))
        expected = ["7" if upload.startswith(_SEVEN) else "3" for n in range(8) for upload in uploads[n::8]]
        for batch in replies:
            assert [reply.status for reply in batch] == [200] * len(uploads)
            assert [_label(reply) for reply in batch] == expected
        _until_connected(server, 2)
        assert _cache(server)["redis"]["skipped"] > 0
        wait_until(lambda: load() and len(redis.entries()) > 0)


def test_a_redis_that_hangs_fails_no_request(replicas: Replicas) -> None:
    """Misses are computed while Redis is stopped, and it is used again afterwards."""
    server = replicas.first
    skipped = _cache(server)["redis"]["skipped"]
    with paused(replicas.redis.pid):
        replies = [reply for replies in post_all(server.port, [_different(30)] * 4) for reply in replies]
        assert [reply.status for reply in replies] == [200] * 120
        wait_until(lambda: _label(server.predict(_SEVEN)) == "7" and _cache(server)["redis"]["skipped"] > skipped)
    _until_connected(server, 1)


def test_a_server_starts_without_its_redis(without_redis: RunningServer) -> None:
    """Requests succeed, and `/cache/clear` reports that Redis could not be cleared."""
    assert [without_redis.predict(_SEVEN).status_code for _ in range(3)] == [200] * 3
    response = _clear(without_redis, **{"x-api-key": _KEY})
    assert (response.status_code, response.json()["code"]) == (503, "redis_unavailable")
    assert without_redis.predict(_SEVEN).status_code == 200


def test_secrets_are_not_shown(without_redis: RunningServer) -> None:
    """Neither the key nor the Redis password is in /info or in the log."""
    without_redis.predict(_SEVEN)
    assert _clear(without_redis, **{"x-api-key": _KEY}).status_code == 503
    for text in (without_redis.get("/info").text, without_redis.log.read_text()):
        assert _PASSWORD not in text
        assert _KEY not in text
