"""Long answers that several requests, HTTP processes or servers share: coalesced, and through a real Redis."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.redis_server import RedisServer, redis_server
from tests.support.samples import encode, make_checkpoint, photo, sharpen
from tests.support.server import PLAIN_HTTP, RunningServer, paused, serve, wait_until, worker_of

_CLASSES = 300
_MANY = 20_000  # so many probabilities take more than the 32 KiB that Redis has of an answer
_ALL = "/predict?top_k=all"
_REQUESTS = 24


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharpen(make_checkpoint(tmp_path_factory.mktemp("shared") / "many", "vit", _CLASSES))


@pytest.fixture(scope="module")
def pair(checkpoint: Path, redis: RedisServer) -> Iterator[tuple[RunningServer, RunningServer]]:
    """Run two servers of one model with one Redis."""
    with (
        serve(model=checkpoint, api_servers=2, redis_url=redis.url) as one,
        serve(model=checkpoint, api_servers=1, redis_url=redis.url) as other,
    ):
        yield one, other


def _images(server: RunningServer) -> int:
    return sum(worker["images"] for worker in server.get("/info").json()["workers"])


def _wait_for_entries(redis: RedisServer, count: int) -> None:
    wait_until(lambda: len(redis.entries()) >= count)


def _by_class(server: RunningServer, upload: bytes, *outputs: str) -> dict[str, Any]:
    name = server.get("/info").json()["model"]
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(upload).decode()]}
    body = {"inputs": [image], "parameters": {"order": "class"}, "outputs": [{"name": one} for one in outputs]}
    response = httpx.post(f"{server.url}/v2/models/{name}/infer", json=body, timeout=60, **PLAIN_HTTP)
    assert response.status_code == 200, response.text
    return {one["name"]: one["data"] for one in response.json()["outputs"]}


def test_another_server_finds_all_classes_in_redis(
    pair: tuple[RunningServer, RunningServer], redis: RedisServer
) -> None:
    """In either order of the classes, and with logits and embeddings; each to the last digit, without its model."""
    one, other = pair
    upload = encode(photo((83, 61)))
    redis.client.flushall()
    first = one.predict(upload, _ALL)
    logits = _by_class(one, upload, "probabilities", "logits")
    embedded = _by_class(one, upload, "embedding")
    _wait_for_entries(redis, 2)
    before = _images(other)
    found = other.predict(upload, _ALL)
    assert (first.headers["x-cache"], found.headers["x-cache"]) == ("miss", "hit")
    assert found.json()["predictions"] == first.json()["predictions"]
    assert len(found.json()["predictions"]) == _CLASSES
    assert _by_class(other, upload, "probabilities", "logits") == logits
    assert len(logits["logits"]) == _CLASSES
    wait_until(lambda: _by_class(other, upload, "embedding") == embedded)
    assert _images(other) <= before + 1, "at most the embedding, if it was not in Redis yet"


def test_a_short_answer_in_redis_is_not_a_long_one(
    pair: tuple[RunningServer, RunningServer], redis: RedisServer
) -> None:
    """Twenty cached classes are never taken for all."""
    one, other = pair
    upload = encode(photo((47, 90)))
    redis.client.flushall()
    assert len(one.predict(upload, "/predict?top_k=20").json()["predictions"]) == 20
    _wait_for_entries(redis, 1)
    assert other.predict(upload, "/predict?top_k=20").headers["x-cache"] == "hit"
    everything = other.predict(upload, _ALL)
    assert everything.headers["x-cache"] == "miss"
    assert len(everything.json()["predictions"]) == _CLASSES


def test_a_damaged_long_answer_in_redis_is_a_miss(
    pair: tuple[RunningServer, RunningServer], redis: RedisServer
) -> None:
    """Whatever is stored there, all classes are returned."""
    one, other = pair
    upload = encode(photo((91, 33)))
    redis.client.flushall()
    wanted = one.predict(upload, _ALL).json()["predictions"]
    _wait_for_entries(redis, 1)
    for name, value in redis.entries().items():
        redis.client.set(name, value[: len(value) // 2])
    found = other.predict(upload, _ALL)
    assert found.headers["x-cache"] == "miss"
    assert [one["label"] for one in found.json()["predictions"]] == [one["label"] for one in wanted]


def test_identical_requests_are_coalesced(pair: tuple[RunningServer, RunningServer]) -> None:
    """Over all connections and HTTP processes, the model runs once for all classes."""
    server, _ = pair
    upload = encode(photo((77, 55)))
    before = _images(server)
    with ThreadPoolExecutor(_REQUESTS) as pool:
        with paused(worker_of(server)):
            replies = [pool.submit(server.predict, upload, _ALL) for _ in range(_REQUESTS)]
            wait_until(lambda: server.get("/info").json()["slots"]["queued"] >= 1)
        answers = [reply.result(60) for reply in replies]
    assert [answer.status_code for answer in answers] == [200] * _REQUESTS
    assert [answer.headers["x-cache"] for answer in answers].count("miss") == 1
    assert len({str(answer.json()["predictions"]) for answer in answers}) == 1
    assert _images(server) == before + 1


def test_more_classes_than_a_cache_entry_holds(tmp_path: Path, redis: RedisServer) -> None:
    """20,000 labels: each answer has all of them, and Redis none of them."""
    folder = sharpen(make_checkpoint(tmp_path / "huge", "vit", _MANY))
    redis.client.flushall()
    upload = encode(photo((64, 64)))
    with serve(model=folder, api_servers=1, redis_url=redis.url) as server:
        for source in ("miss", "hit"):
            response = server.predict(upload, _ALL)
            assert response.headers["x-cache"] == source
            predictions = response.json()["predictions"]
            assert len({one["label"] for one in predictions}) == _MANY
            assert sum(one["confidence"] for one in predictions) == pytest.approx(1, abs=0.02)
        assert len(_by_class(server, upload, "logits")["logits"]) == _MANY
        assert all(len(value) <= 2**15 for value in redis.entries().values())
