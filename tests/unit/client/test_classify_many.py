"""`classify_many` of both clients: order, concurrency, failures and cancellation, against a scripted server."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.client_drivers import Driver
from tests.support.scripted_server import ANSWER, Fault, Request, error, ok, reply, scripted
from tests.support.waiting import until
from vit_api.client import (
    AsyncClient,
    Classification,
    Client,
    Rejected,
    Retries,
    UnreadableInput,
)

pytestmark = pytest.mark.anyio


def _by_upload(**replies: bytes) -> Callable[[Request], bytes]:
    return lambda request: replies.get(request.body.decode(), ok())


def _labelled(request: Request) -> bytes:
    """Respond with the upload as the label."""
    return reply(200, ANSWER | {"predictions": [{"label": request.body.decode(), "confidence": 1.0}]})


async def test_results_are_in_order(driver: Driver) -> None:
    """Results have the order of the images, even if the first is answered last."""
    second_is_done = threading.Event()

    def handler(request: Request) -> bytes:
        if request.body == b"0":
            assert second_is_done.wait(30)
        if request.body == b"1":
            second_is_done.set()
        return _labelled(request)

    with scripted(handler=handler) as server:
        outcomes = await driver.classify_many(server.url, [b"%d" % n for n in range(10)], concurrency=2)
    assert [outcome.top.label for outcome in outcomes] == [str(n) for n in range(10)]


async def test_concurrency(driver: Driver) -> None:
    """Exactly `concurrency` requests are in flight: each is answered only when three have arrived."""
    barrier = threading.Barrier(3)

    def handler(_: Request) -> bytes:
        barrier.wait(30)
        return ok()

    with scripted(handler=handler) as server:
        assert len(await driver.classify_many(server.url, [b"image"] * 9, concurrency=3)) == 9
        assert server.max_in_flight == 3


async def test_a_failed_image_does_not_affect_the_others(driver: Driver, tmp_path: Path) -> None:
    """An error of the server or the file takes the image's position in the results."""
    replies = _by_upload(bad=error(400, "bad_image"))
    images = [b"good", b"bad", tmp_path / "missing.png", b"good"]
    with scripted(handler=replies) as server:
        outcomes = await driver.classify_many(server.url, images)
    assert [type(outcome) for outcome in outcomes] == [Classification, Rejected, UnreadableInput, Classification]


async def test_images_are_read_lazily(driver: Driver) -> None:
    """At most twice the concurrency are read ahead."""
    taken = itertools.count()
    images = (b"%d" % next(taken) for _ in itertools.count())
    with scripted(handler=_labelled) as server:
        outcomes = await driver.classify_many(server.url, images, concurrency=2, most=5)
    assert [outcome.top.label for outcome in outcomes] == ["0", "1", "2", "3", "4"]
    assert next(taken) <= 5 + 2 * 2


def test_abandoned_images_are_not_retried() -> None:
    """A caller that closes the iterator does not wait for retries of the images in flight."""
    is_asked = threading.Event()
    is_closed = threading.Event()

    def handler(request: Request) -> bytes:
        if request.body == b"wanted":
            assert is_asked.wait(30)
            return ok()
        is_asked.set()
        return error(503, "overloaded")

    def sleep(_: float) -> None:
        assert is_closed.wait(30)

    with scripted(handler=handler) as server, Client(server.url, sleep=sleep, retries=Retries(tries=100)) as client:
        outcomes = client.classify_many([b"wanted", b"unwanted"], concurrency=2)
        assert isinstance(next(outcomes), Classification)
        is_closed.set()
        outcomes.close()
        assert len(server.requests) < 100


async def test_cancellation_ends_requests_in_flight() -> None:
    """A cancelled iteration leaves no task behind."""
    others = asyncio.all_tasks()
    with scripted(handler=lambda _: Fault.SILENCE) as server:
        async with AsyncClient(server.url) as client:
            outcomes = client.classify_many([b"image"] * 4, concurrency=2)
            task = asyncio.ensure_future(anext(outcomes))
            await until(lambda: len(server.requests) == 2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await outcomes.aclose()
            assert asyncio.all_tasks() == others


@pytest.mark.parametrize("concurrency", [0, -1])
async def test_concurrency_below_one_raises(driver: Driver, concurrency: int) -> None:
    """At least one request must be allowed."""
    with pytest.raises(ValueError, match="concurrency"):
        await driver.classify_many("http://host", [], concurrency=concurrency)
