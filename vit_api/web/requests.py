"""Requests and responses as the busy paths see them: what ASGI gives, unwrapped.

starlette's Request and Response take as long as all the rest of an answer from the cache.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from vit_api.errors import Overloaded, UploadTooLarge

REQUEST_ID = b"x-request-id"

Headers = Sequence[tuple[bytes, bytes]]

T = TypeVar("T")

_JSON = b"application/json"
NO_SNIFFING: tuple[bytes, bytes] = (b"x-content-type-options", b"nosniff")
"""Has browsers take a body for what its type says, and never for a script or a page."""


class Pending:
    """How many bytes of uploads a process holds, and may hold. For one event loop.

    Args:
        max_bytes: At the most.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes

    def take(self, count: int) -> None:
        """Take room for `count` bytes.

        Raises:
            Overloaded: There is none.
        """
        if count > self._free:
            raise Overloaded("the server is busy: it holds as many uploads as it may; try again later")
        self._free -= count

    def give_back(self, count: int) -> None:
        """Give room back."""
        self._free += count


class Request:
    """One HTTP request.

    Args:
        scope: ASGI's description of it.
        receive: ASGI's way to its body.
        request_id: Its id.
        pending: What its body takes room in, until `close`.
        arrived_at: When it came, in seconds of the monotonic clock.

    Attributes:
        scope: ASGI's description of it.
        id: Its id, for the answer and the log.
        arrived_at: When it came.
        headers: By lower-case name; of a repeated one the last.
        endpoint: What the metrics call its path; empty if it is not one that classifies.
        key_digest: Of the client's key; empty where none is asked for.
        charge: Counts further images of this request, beside the first, in the client's budget.
        answer_headers: What any answer to it is to have.
        received_bytes: Bytes of the body so far.
        parsed_at: When the upload was found in the body, in seconds of the monotonic clock; None before.
        looked_up_at: When it was known whether the upload's answer is remembered; None before.
    """

    __slots__ = (
        "_is_gone",
        "_pending",
        "_receive",
        "answer_headers",
        "arrived_at",
        "charge",
        "endpoint",
        "headers",
        "id",
        "key_digest",
        "looked_up_at",
        "parsed_at",
        "received_bytes",
        "scope",
    )

    def __init__(self, scope: Scope, receive: Receive, request_id: bytes, pending: Pending, arrived_at: float) -> None:
        self.scope = scope
        self.id = request_id
        self.arrived_at = arrived_at
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._is_gone = False
        self._pending = pending
        self.endpoint = ""
        self.key_digest = b""
        self.charge: Callable[[int], Awaitable[None]] = _no_charge
        self.answer_headers: Headers = ()
        self.received_bytes = 0
        self.parsed_at: float | None = None
        self.looked_up_at: float | None = None

    def close(self) -> None:
        """Give back the room that the body took. To be called once."""
        self._pending.give_back(self.received_bytes)

    async def read_body(self, max_bytes: int) -> bytes:
        """Return the body; refuse it at the limit while it arrives, or at once by its declared length.

        Args:
            max_bytes: Of the body at the most.

        Raises:
            UploadTooLarge: It has more bytes; the rest was not read.
            Overloaded: The process holds too many uploads already.
            ClientDisconnect: The client left first.
        """
        declared = self.headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > max_bytes:
            raise UploadTooLarge(max_bytes)
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > max_bytes:
                raise UploadTooLarge(max_bytes)
            self._pending.take(len(chunk))
            self.received_bytes = size
            if not message.get("more_body", False):
                return b"".join([*chunks, chunk]) if chunks else chunk
            chunks.append(chunk)

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns, or cancel it when the client hangs up. For when the body was read.

        Raises:
            ClientDisconnect: The client hung up.
        """
        task = asyncio.current_task()
        assert task is not None
        watch = asyncio.get_running_loop().create_task(self._cancel_when_gone(task))
        try:
            return await work
        except asyncio.CancelledError:
            if not self._is_gone:
                raise
            if hasattr(task, "uncancel"):  # from Python 3.11 on
                task.uncancel()
            raise ClientDisconnect from None
        finally:
            watch.cancel()

    async def _cancel_when_gone(self, task: asyncio.Task[Any]) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._is_gone = True
            task.cancel()


async def _no_charge(_: int) -> None:
    pass


class Response(NamedTuple):
    """One HTTP response.

    Attributes:
        status: The HTTP status.
        body: Mostly JSON.
        headers: Beside the body's type and length, which are always sent.
        outcomes: What became of each image, for those who watch.
        content_type: The body's.
    """

    status: int
    body: bytes
    headers: Headers = ()
    outcomes: Sequence[Any] = ()
    content_type: bytes = _JSON

    def all_headers(self) -> list[tuple[bytes, bytes]]:
        """Return every header to send."""
        return [
            (b"content-type", self.content_type),
            NO_SNIFFING,
            (b"content-length", b"%d" % len(self.body)),
            *self.headers,
        ]

    async def send(self, send: Send, request: Request, *, is_last: bool = False) -> None:
        """Send it as the answer to a request; the last one closes its connection."""
        headers = [*self.all_headers(), *request.answer_headers, (REQUEST_ID, request.id)]
        if is_last:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def to_json(body: Any) -> bytes:
    """Return compact JSON."""
    return _encode(body).encode()
