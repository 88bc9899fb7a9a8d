"""Bodies and their limits, with an ASGI connection that the test plays."""

from __future__ import annotations

import asyncio
import time

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from vit_api.errors import BodyTimeout, Overloaded, UploadTooLarge, ViTError
from vit_api.web.bodies import BodyReader
from vit_api.web.requests import BodyLimit, Request, RequestLimits

pytestmark = pytest.mark.anyio

_LIMIT = BodyLimit(10, 8)


class Body:
    """Sends chunks, and then nothing or, if there are no more, its end."""

    def __init__(self, *chunks: bytes, is_complete: bool = True, waits: bool = False) -> None:
        self.chunks = list(chunks)
        self._is_complete = is_complete
        self._waits = waits

    async def receive(self) -> Message:
        if self._waits:
            await asyncio.sleep(0)
        if not self.chunks:
            await asyncio.Event().wait()
        chunk = self.chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(self.chunks) or not self._is_complete}


def _request(content_length: bytes | None = None) -> Request:
    headers = [] if content_length is None else [(b"content-length", content_length)]
    scope = {"method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
    return Request(scope, b"id", arrived_at=time.monotonic(), timeout_s=30)


def _reader(max_pending_bytes: int = 100, body_timeout_s: float = 10) -> BodyReader:
    return BodyReader(RequestLimits(max_pending_bytes, 30, body_timeout_s))


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("chunks", [[b""], [b"0123456789"], [b"01234", b"56789"], [b"", b"0", b"", b"1", b""]])
async def test_a_body_in_any_number_of_pieces(chunks: list[bytes], waits: bool) -> None:
    """Whether they are there already or not."""
    request = _request()
    await _reader().read(request, Body(*chunks, waits=waits).receive, _LIMIT)
    whole = b"".join(chunks)
    assert (request.received_bytes, request.take_body()) == (len(whole), whole)
    assert request.body == b""


async def test_a_body_that_is_too_long_is_not_read_to_its_end() -> None:
    """The error reports the limit of the upload."""
    body = Body(b"01234", b"567890", b"never read")
    with pytest.raises(UploadTooLarge) as raised:
        await _reader().read(_request(), body.receive, _LIMIT)
    assert raised.value.message == UploadTooLarge(_LIMIT.reported_bytes).message
    assert body.chunks == [b"never read"]


@pytest.mark.parametrize("declared", [b"11", b"9999999999999999999999"])
async def test_a_body_that_is_declared_too_long_is_not_read(declared: bytes) -> None:
    """Not even its first piece."""
    body = Body(b"0")
    with pytest.raises(UploadTooLarge):
        await _reader().read(_request(declared), body.receive, _LIMIT)
    assert body.chunks == [b"0"]


async def test_a_body_that_stalls_is_late() -> None:
    """After the time of all bodies, counted from the request's arrival."""
    with pytest.raises(BodyTimeout):
        await _reader(body_timeout_s=0.05).read(_request(), Body(b"0", is_complete=False).receive, _LIMIT)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param(Body(b"01234", b"56789"), None, id="read"),
        pytest.param(Body(b"01234", b"567890"), UploadTooLarge, id="too long"),
        pytest.param(Body(b"01234", is_complete=False), BodyTimeout, id="late"),
    ],
)
async def test_the_memory_of_a_body_is_given_back(body: Body, error: type[ViTError] | None) -> None:
    """Whatever became of it; until then, others have to do without."""
    reader, first = _reader(max_pending_bytes=10, body_timeout_s=0.05), _request()
    if error is None:
        await reader.read(first, body.receive, _LIMIT)
    else:
        with pytest.raises(error):
            await reader.read(first, body.receive, _LIMIT)
    with pytest.raises(Overloaded):
        await reader.read(_request(), Body(b"0123456789").receive, _LIMIT)
    reader.release(first)
    await reader.read(_request(), Body(b"0123456789").receive, _LIMIT)


async def test_a_client_that_hangs_up_sends_no_more() -> None:
    """The body is not taken for complete."""

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        await _reader().read(_request(), gone, _LIMIT)
