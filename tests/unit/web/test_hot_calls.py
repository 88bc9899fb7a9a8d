"""Requests of hot routes: what is admitted, and the memory of their bodies."""

from __future__ import annotations

import base64
import gzip
import hashlib
import time
import zlib
from collections.abc import Awaitable, Callable

import pytest

from vit_api.errors import Overloaded, Unauthorized, UnsupportedEncoding, UploadTooLarge, ViTError
from vit_api.urgency import Urgency
from vit_api.web.bodies import BodyMemory
from vit_api.web.hot_calls import CallContext, HotCall
from vit_api.web.observers.exchange import Exchange
from vit_api.web.requests import BodyLimit, Request
from vit_api.web.responses import Response
from vit_api.web.routes import HotRoute

pytestmark = pytest.mark.anyio

_DIGEST = f"sha-256=:{base64.b64encode(hashlib.sha256(b'known').digest()).decode()}:"

Charge = Callable[[Request], Awaitable[None]]
Check = Callable[[Request], None]


class Bench:
    """Requests that share one memory budget; their handler returns their bodies."""

    def __init__(self, max_bytes: int = 100, limit: int = 10) -> None:
        self.exchanges: list[Exchange] = []
        self.memory = BodyMemory(max_bytes)
        self._limit = BodyLimit(limit, 8)

    def observe(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)

    async def handle(self, request: Request) -> Response:
        if request.body == b"bug":
            raise ZeroDivisionError
        return Response(200, request.take_body())

    def find(self, _: Request, body: bytes) -> Response | None:
        if body == b"bug":
            raise ZeroDivisionError
        return Response(200, body) if body == b"known" else None

    def call(self, charge: Charge | None = None, check_key: Check | None = None, **headers: str) -> HotCall:
        sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {"method": "POST", "path": "/predict", "query_string": b"", "headers": sent}
        request = Request(scope, b"id", arrived_at=time.monotonic(), timeout_s=30)
        route = HotRoute("POST", "/predict", "/predict", self.handle, lambda _: self._limit, find=self.find)
        return HotCall(request, route, CallContext(self.memory, 30, [self], check_key, charge))

    async def answer(self, body: bytes, **headers: str) -> Response:
        call = self.call(**headers)
        await call.admit()
        call.receive(len(body))
        response = await call.handle(body)
        call.end(response)
        return response


async def test_a_body_that_is_too_long_is_refused() -> None:
    """It is refused by its announced length, or once it exceeds the limit; the error reports the upload limit."""
    with pytest.raises(UploadTooLarge) as announced:
        await Bench().call(content_length="11").admit()
    call = Bench().call()
    await call.admit()
    call.receive(10)
    with pytest.raises(UploadTooLarge) as received:
        call.receive(1)
    assert announced.value.message == received.value.message == UploadTooLarge(8).message


async def test_memory_is_given_back() -> None:
    """This holds for every outcome of the request."""
    bench = Bench(max_bytes=10)
    first, second = bench.call(), bench.call()
    for call in (first, second):
        await call.admit()
    first.receive(10)
    with pytest.raises(Overloaded):
        second.receive(1)
    first.end(None)
    second.receive(10)
    assert [exchange.status for exchange in bench.exchanges] == [499]


async def test_large_requests_of_low_urgency_leave_memory_for_others() -> None:
    """Half of it, whether the header says so or the body; what a request had is free again."""
    bench = Bench(max_bytes=20)
    named, late = (bench.call(priority="u=7") for _ in range(2))
    told, normal = (bench.call() for _ in range(2))
    for call in (named, told, late, normal):
        await call.admit()
    named.receive(6)
    told.receive(4)
    told._request.set_urgency(Urgency.LOW)
    with pytest.raises(Overloaded, match="of low urgency"):
        late.receive(1)
    normal.receive(10)
    with pytest.raises(Overloaded, match="of low urgency"):
        normal._request.set_urgency(Urgency.LOW)
    told._request.set_urgency(Urgency.NORMAL)
    told.end(None)
    late.receive(4)
    for call in (named, late, normal):
        call.end(None)
    again = bench.call(priority="u=7")
    await again.admit()
    again.receive(10)


@pytest.mark.parametrize(
    ("coding", "body"), [("deflate", zlib.compress(b"")), ("gzip", gzip.compress(b"0"))], ids=["deflate", "gzip"]
)
async def test_a_compressed_body_is_decoded(coding: str, body: bytes) -> None:
    """Every supported coding is decoded."""
    response = await Bench(limit=40, max_bytes=200).answer(body, content_encoding=coding)
    assert response.body in (b"", b"0")


async def test_a_body_of_another_coding_is_refused_by_its_header() -> None:
    """None of the body is read."""
    with pytest.raises(UnsupportedEncoding):
        await Bench().call(content_encoding="br").admit()


async def test_a_compressed_body_needs_the_memory_of_the_largest_one() -> None:
    """Once its length is known, it needs only that much."""
    body = gzip.compress(b"0" * 50)
    refused = await Bench(max_bytes=1000, limit=1000).answer(body, content_encoding="gzip")
    assert refused.status == Overloaded.status
    taken = await Bench(max_bytes=1000 + len(body), limit=1000).answer(body, content_encoding="gzip")
    assert taken.body == b"0" * 50


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        pytest.param(b"known", {}, 200, id="cached"),
        pytest.param(b"other", {}, None, id="not cached"),
        pytest.param(b"known", {"content_encoding": "gzip"}, None, id="compressed"),
        pytest.param(b"known", {"content_digest": _DIGEST}, None, id="with a digest"),
        pytest.param(b"known", {"content_encoding": "br"}, 415, id="unknown coding"),
        pytest.param(bytes(11), {}, 413, id="too long"),
        pytest.param(b"bug", {}, 500, id="bug"),
    ],
)
async def test_a_whole_request_is_admitted_and_looked_up(
    body: bytes, headers: dict[str, str], status: int | None
) -> None:
    """This takes no waiting; what is not cached is handled afterwards, and all memory is given back."""
    bench = Bench(max_bytes=len(body))
    for _ in range(3):
        call = bench.call(**headers)
        response = call.find_whole(body)
        assert (None if response is None else response.status) == status
        call.end(response or await call.answer(body))


async def test_a_rate_limit_may_have_to_wait() -> None:
    """So a request that is charged is not looked up early; it is answered, and charged once."""
    bench = Bench()
    charged: list[Request] = []

    async def charge(request: Request) -> None:
        charged.append(request)

    call = bench.call(charge=charge)
    assert call.find_whole(b"known") is None
    assert (await call.answer(b"known")).body == b"known"
    assert len(charged) == 1


async def test_a_wrong_key_finds_nothing() -> None:
    """The key is checked first."""

    def refuse(_: Request) -> None:
        raise Unauthorized("planted", is_wrong=True)

    response = Bench().call(check_key=refuse).find_whole(b"known")
    assert response is not None
    assert response.status == Unauthorized.status


async def test_a_bug_is_an_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """Its traceback is in the log, and nowhere else."""
    response = await Bench().answer(b"bug")
    assert response.status == 500
    assert isinstance(response.outcomes[0], ViTError)
    assert "ZeroDivisionError" in caplog.text
    assert b"ZeroDivision" not in response.body
