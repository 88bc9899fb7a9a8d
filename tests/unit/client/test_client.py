"""The sync and the async client, against a scripted server that answers, breaks and stalls, without real waits."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.harness.servers import free_port
from tests.support.samples import image_files
from tests.support.scripted_server import ANSWER, Fault, Request, error, ok, reply, scripted
from tests.support.server import ROOT
from tests.support.waiting import until
from vit_api.client import (
    AsyncClient,
    Busy,
    Classification,
    ClassifyError,
    Client,
    Rejected,
    Retries,
    ScoredLabel,
    ServerFailed,
    TimedOut,
    UnexpectedAnswer,
    Unreachable,
    UnreadableInput,
)
from vit_api.client.base import to_failure

pytestmark = pytest.mark.anyio

MOMENT = {"date": "Sun, 06 Nov 1994 08:49:37 GMT", "retry_after": "Sun, 06 Nov 1994 08:50:07 GMT"}


class Driver(ABC):
    """Drives one of the clients, with a fake clock: waits are recorded and take no time."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.tick_s = 0.0  # by how much each reading of the clock advances it
        self._now = 0.0

    def clock(self) -> float:
        self._now += self.tick_s
        return self._now

    def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._now += seconds

    @abstractmethod
    async def classify(
        self, url: str, image: Any = b"image", client: dict[str, Any] | None = None, **options: Any
    ) -> Classification:
        """Classify an image with a new client."""

    @abstractmethod
    async def classify_many(
        self, url: str, images: Iterable[Any], most: int | None = None, **options: Any
    ) -> list[Any]:
        """Return at most `most` outcomes of many images, or all."""


class SyncDriver(Driver):
    """Drives `Client`, in a thread."""

    async def classify(
        self, url: str, image: Any = b"image", client: dict[str, Any] | None = None, **options: Any
    ) -> Classification:
        def run() -> Classification:
            with Client(url, clock=self.clock, sleep=self._sleep, **client or {}) as connected:
                return connected.classify(image, **options)

        return await asyncio.to_thread(run)

    async def classify_many(
        self, url: str, images: Iterable[Any], most: int | None = None, **options: Any
    ) -> list[Any]:
        def run() -> list[Any]:
            with (
                Client(url, clock=self.clock, sleep=self._sleep) as client,
                contextlib.closing(client.classify_many(images, **options)) as outcomes,
            ):
                return list(itertools.islice(outcomes, most))

        return await asyncio.to_thread(run)


class AsyncDriver(Driver):
    """Drives `AsyncClient`."""

    async def _sleep_async(self, seconds: float) -> None:
        self._sleep(seconds)

    async def classify(
        self, url: str, image: Any = b"image", client: dict[str, Any] | None = None, **options: Any
    ) -> Classification:
        async with AsyncClient(url, clock=self.clock, sleep=self._sleep_async, **client or {}) as connected:
            return await connected.classify(image, **options)

    async def classify_many(
        self, url: str, images: Iterable[Any], most: int | None = None, **options: Any
    ) -> list[Any]:
        found: list[Any] = []
        async with (
            AsyncClient(url, clock=self.clock, sleep=self._sleep_async) as client,
            contextlib.aclosing(client.classify_many(images, **options)) as outcomes,
        ):
            while len(found) != most and (outcome := await anext(outcomes, None)) is not None:
                found.append(outcome)
        return found


@pytest.fixture(params=[pytest.param(SyncDriver, id="sync"), pytest.param(AsyncDriver, id="async")])
def driver(request: pytest.FixtureRequest) -> Driver:
    """Return a driver of each client."""
    driver: Driver = request.param()
    return driver


async def test_a_result(driver: Driver) -> None:
    """All fields of the response and its headers are in the result."""
    headers = {"x_cache": "miss", "x_queue_time_ms": "0.5", "x_inference_time_ms": "1.25", "x_batch_size": "3"}
    with scripted(ok(x_request_id="id-1", **headers)) as server:
        result = await driver.classify(server.url)
    assert result == Classification(
        predictions=(ScoredLabel("7", 0.9), ScoredLabel("1", 0.1)),
        cached=False,
        processing_time_ms=3.5,
        model="digits",
        request_id="id-1",
        source="miss",
        queue_time_ms=0.5,
        inference_time_ms=1.25,
        batch_size=3,
    )
    assert result.top == ScoredLabel("7", 0.9)


async def test_a_request(driver: Driver) -> None:
    """The bytes are sent unchanged, with the options as this API expects them and the key as in RFC 6750."""
    with scripted(ok()) as server:
        await driver.classify(server.url + "/models/a/", b"bytes", top_k=3, fresh=True, client={"api_key": "k-1"})
        (request,) = server.requests
    assert request.line == "POST /models/a/predict?top_k=3 HTTP/1.1"
    assert request.body == b"bytes"
    assert request.headers["authorization"] == "Bearer k-1"
    assert request.headers["cache-control"] == "no-cache"


async def test_a_request_without_options(driver: Driver) -> None:
    """Without a key or `fresh`, their headers are not sent."""
    with scripted(ok()) as server:
        await driver.classify(server.url)
        (request,) = server.requests
    assert not {"authorization", "cache-control"} & request.headers.keys()


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "least_s"),
    [
        pytest.param({"retry_after": "30"}, 30.0, id="seconds"),
        pytest.param(MOMENT, 30.0, id="date"),
        pytest.param({}, 0.0, id="none"),
        pytest.param({"retry_after": "soon"}, 0.0, id="malformed"),
    ],
)
async def test_a_busy_server_is_retried(driver: Driver, status: int, headers: dict[str, str], least_s: float) -> None:
    """The client waits as long as Retry-After says, or slightly longer, and sends the same bytes again."""
    with scripted(error(status, "overloaded", **headers), ok()) as server:
        assert (await driver.classify(server.url, io.BytesIO(b"from a file"))).top.label == "7"
        assert [request.body for request in server.requests] == [b"from a file"] * 2
    (wait_s,) = driver.waits
    assert least_s <= wait_s <= least_s + Retries().first_wait_s


async def test_retries_are_limited(driver: Driver) -> None:
    """After the last try, the server's error is raised."""
    with scripted(handler=lambda _: error(503, "overloaded", retry_after="2")) as server:
        with pytest.raises(Busy, match="what is wrong") as raised:
            await driver.classify(server.url, client={"retries": Retries(tries=3)})
        assert len(server.requests) == 3
    assert (raised.value.code, raised.value.status, raised.value.request_id) == ("overloaded", 503, "id-1")
    assert raised.value.retry_after_s == 2.0


async def test_a_retry_beyond_the_time_limit_is_not_awaited(driver: Driver) -> None:
    """With a Retry-After of an hour, the client fails at once."""
    with scripted(error(503, "overloaded", retry_after="3600")) as server, pytest.raises(Busy) as raised:
        await driver.classify(server.url)
    assert raised.value.retry_after_s == 3600
    assert driver.waits == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        pytest.param(400, Rejected, id="400"),
        pytest.param(401, Rejected, id="401"),
        pytest.param(408, Rejected, id="408"),
        pytest.param(413, Rejected, id="413"),
        pytest.param(500, ServerFailed, id="500"),
    ],
)
async def test_other_errors_are_not_retried(driver: Driver, status: int, kind: type[ClassifyError]) -> None:
    """The same request would fail again."""
    with scripted(error(status, "a_code")) as server:
        with pytest.raises(kind) as raised:
            await driver.classify(server.url)
        assert len(server.requests) == 1
    assert raised.value.code == "a_code"


async def test_a_reset_connection_is_retried(driver: Driver) -> None:
    """Each retry uses a new connection."""
    with scripted(Fault.RESET, Fault.RESET, ok()) as server:
        assert (await driver.classify(server.url)).top.label == "7"
        assert server.connections == 3
    assert len(driver.waits) == 2


async def test_a_refused_connection_is_unreachable(driver: Driver) -> None:
    """The error has no status, and the network error is its cause."""
    with pytest.raises(Unreachable) as raised:
        await driver.classify(f"http://127.0.0.1:{free_port()}", client={"retries": Retries(tries=3)})
    assert (raised.value.code, raised.value.status, raised.value.request_id) == ("unreachable", None, None)
    assert raised.value.__cause__ is not None
    assert len(driver.waits) == 2


async def test_a_silent_server_times_out(driver: Driver) -> None:
    """A timeout is not retried: the server may still be working on the request."""
    with scripted(Fault.SILENCE) as server:
        with pytest.raises(TimedOut):
            await driver.classify(server.url, client={"timeout_s": 0.5})
        assert len(server.requests) == 1


async def test_a_slow_body_times_out(driver: Driver) -> None:
    """The time limit covers the body: the clock advances by 50 s at each reading."""
    driver.tick_s = 50.0
    with scripted(ok()) as server, pytest.raises(TimedOut):
        await driver.classify(server.url)


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        pytest.param(reply(502, b"<html>", content_type="text/html"), ServerFailed, "http_502", id="bad gateway"),
        pytest.param(reply(403, b"<html>", content_type="text/html"), Rejected, "http_403", id="forbidden"),
        pytest.param(reply(200, b"<html>", content_type="text/html"), UnexpectedAnswer, "unexpected_answer", id="page"),
        pytest.param(reply(307, b"", location="https://host/"), UnexpectedAnswer, "http_307", id="redirect"),
        pytest.param(
            reply(200, b"no gzip", content_encoding="gzip"), UnexpectedAnswer, "unexpected_answer", id="damaged"
        ),
        pytest.param(reply(200, b" " * 2**21), UnexpectedAnswer, "unexpected_answer", id="too long"),
    ],
)
async def test_foreign_responses_raise(driver: Driver, answer: bytes, kind: type[ClassifyError], code: str) -> None:
    """Responses that are not this API's raise errors with the same base class."""
    with scripted(answer) as server, pytest.raises(kind) as raised:
        await driver.classify(server.url)
    assert raised.value.code == code


async def test_another_protocol_is_unreachable(driver: Driver) -> None:
    """A server that does not speak HTTP counts as unreachable."""
    with scripted(handler=lambda _: b"SSH-2.0-OpenSSH_9.9\r\n\r\n") as server, pytest.raises(Unreachable):
        await driver.classify(server.url, client={"retries": Retries(tries=2)})


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        pytest.param(httpx.ConnectTimeout, Unreachable, id="connect"),
        pytest.param(httpx.ReadTimeout, TimedOut, id="read"),
        pytest.param(httpx.WriteTimeout, TimedOut, id="write"),
    ],
)
def test_timeouts_of_httpx(raised: type[httpx.HTTPError], kind: type[ClassifyError]) -> None:
    """A connect timeout is Unreachable, which is retried; a timeout of a sent request is TimedOut, which is not."""
    assert type(to_failure(raised("too late"))) is kind


def test_connections_are_reused() -> None:
    """Three images are sent on one connection."""
    with scripted(ok(), ok(), ok()) as server, Client(server.url) as client:
        for _ in range(3):
            client.classify(b"image")
        assert server.connections == 1


@pytest.mark.parametrize("top_k", [0, 21, -1])
async def test_top_k_out_of_range_raises(driver: Driver, top_k: int) -> None:
    """It raises before anything is sent."""
    with scripted() as server, pytest.raises(ValueError, match="top_k"):
        await driver.classify(server.url, top_k=top_k)


@pytest.mark.parametrize(
    "options",
    [pytest.param({"timeout_s": 0}, id="zero timeout"), pytest.param({"api_key": "a b"}, id="key with a space")],
)
def test_invalid_settings_raise(options: dict[str, Any]) -> None:
    """The client's constructor validates them."""
    with pytest.raises(ValueError, match=r"timeout_s|API key"):
        Client("http://host", **options)


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
        assert server.most_at_once == 3


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


def _closed_file() -> io.BytesIO:
    file = io.BytesIO()
    file.close()
    return file


def _truncated_image() -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(image_files()["jpeg"][:1000]))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: "no/such/file.png", id="missing"),
        pytest.param(lambda: ROOT, id="folder"),
        pytest.param(lambda: "null\0character", id="invalid file name"),
        pytest.param(_closed_file, id="closed file"),
        pytest.param(_truncated_image, id="Pillow image of a truncated file"),
    ],
)
async def test_unreadable_inputs_raise(driver: Driver, make: Callable[[], Any]) -> None:
    """They raise `UnreadableInput`, and nothing is sent."""
    with scripted() as server, pytest.raises(UnreadableInput):
        await driver.classify(server.url, make())


@pytest.mark.parametrize(
    "wrong",
    [pytest.param(7, id="number"), pytest.param(None, id="none"), pytest.param(io.StringIO("text"), id="text file")],
)
async def test_unsupported_types_raise(driver: Driver, wrong: Any) -> None:
    """A programming error raises TypeError, not `ClassifyError`."""
    with scripted() as server, pytest.raises(TypeError):
        await driver.classify(server.url, wrong)


def test_the_client_imports_none_of_the_servers_packages() -> None:
    """It starts fast, and works where they are not installed."""
    code = "import sys, vit_api.client.blocking; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert not loaded & {"torch", "transformers", "litserve", "fastapi", "starlette", "pydantic", "numpy", "PIL"}
