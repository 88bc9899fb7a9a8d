"""Requests as the hot routes see them: a thin view of what ASGI gives, and the limits that hold for all.

starlette's Request and Response alone would take as long as the rest of a cache hit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from vit_api.errors import BodyTimeout, Overloaded, UploadTooLarge
from vit_api.web.time_limit import TimeLimit

Headers = Sequence[tuple[bytes, bytes]]

T = TypeVar("T")


class RequestLimits:
    """The memory and the time that the requests of a process may take. For one event loop.

    Args:
        max_pending_bytes: Maximum size of the bodies of all requests in flight.
        request_timeout_s: Seconds from a request's arrival to a 504.
        body_timeout_s: Seconds from a request's arrival until its body must be read.
    """

    def __init__(self, *, max_pending_bytes: int, request_timeout_s: float, body_timeout_s: float) -> None:
        self._free = max_pending_bytes
        self.request_timeout_s = request_timeout_s
        self.body_time = TimeLimit(min(body_timeout_s, request_timeout_s), _late_body)

    def take(self, count: int) -> None:
        """Reserve `count` bytes.

        Raises:
            Overloaded: So many are not free.
        """
        if count > self._free:
            raise Overloaded("The server is overloaded: its memory for uploads is used up. Try again later.")
        self._free -= count

    def give_back(self, count: int) -> None:
        """Free `count` bytes."""
        self._free += count


def _late_body() -> BodyTimeout:
    return BodyTimeout(
        "The request body did not arrive within the time limit. Send it faster, or send a smaller image."
    )


class Timeline:
    """When a request reached its stages, in seconds of the monotonic clock; None for those that it did not reach.

    Attributes:
        arrived_at: The request line and headers were read.
        parsed_at: The upload was found in the body.
        looked_up_at: The cache was asked.
    """

    __slots__ = ("arrived_at", "looked_up_at", "parsed_at")

    def __init__(self, arrived_at: float) -> None:
        self.arrived_at = arrived_at
        self.parsed_at: float | None = None
        self.looked_up_at: float | None = None


class Admission:
    """What was found out when a request was let in: who sent it, and what it may still use.

    Attributes:
        key_digest: The digest of the client's key; empty if no key is required.
        charge: Counts images beyond the first against the client's rate limit.
        headers: Headers for any response to the request.
    """

    __slots__ = ("charge", "headers", "key_digest")

    def __init__(self) -> None:
        self.key_digest = b""
        self.charge: Callable[[int], Awaitable[None]] = _no_charge
        self.headers: Headers = ()


class Request:
    """One HTTP request.

    Args:
        scope: ASGI's description of it.
        receive: ASGI's source of its body.
        request_id: Its id, for the response and the log.
        limits: What it may take; its body reserves memory there until `close`.
        arrived_at: When it arrived, in seconds of the monotonic clock.
        endpoint: The endpoint in the metrics; empty if the route doesn't classify.

    Attributes:
        id: Its id.
        method: The HTTP method.
        path: The path, decoded.
        query: The query string, as sent.
        headers: By lower-case name; of a repeated one the last.
        endpoint: See above.
        timeline: When it reached its stages.
        admission: Who sent it.
        received_bytes: Bytes of the body that were read.
    """

    __slots__ = (
        "_is_gone",
        "_limits",
        "_receive",
        "admission",
        "endpoint",
        "headers",
        "id",
        "method",
        "path",
        "query",
        "received_bytes",
        "scope",
        "timeline",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        request_id: bytes,
        limits: RequestLimits,
        *,
        arrived_at: float,
        endpoint: str = "",
    ) -> None:
        self.scope = scope
        self.id = request_id
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.endpoint = endpoint
        self.timeline = Timeline(arrived_at)
        self.admission = Admission()
        self.received_bytes = 0
        self._receive = receive
        self._is_gone = False
        self._limits = limits

    @property
    def deadline(self) -> float:
        """When its response is due, in seconds of the monotonic clock."""
        return self.timeline.arrived_at + self._limits.request_timeout_s

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since its arrival."""
        return (time.monotonic() - self.timeline.arrived_at) * 1000

    @property
    def bypasses_cache(self) -> bool:
        """Whether the client requests `no-cache`; see RFC 9111, section 5.2.1.4."""
        if b"cache-control" not in self.headers:
            return False
        # The header may be repeated, and its values belong together.
        values = b",".join(value for name, value in self.scope["headers"] if name == b"cache-control")
        return b"no-cache" in [directive.strip().lower() for directive in values.split(b",")]

    def close(self) -> None:
        """Free the memory of the body. To be called once."""
        self._limits.give_back(self.received_bytes)

    async def read_body(self, max_bytes: int) -> bytes:
        """Return the body, or refuse it: at once by its declared length, else when it exceeds the limit.

        Args:
            max_bytes: Maximum size of the body.

        Raises:
            UploadTooLarge: It has more bytes; the rest was not read.
            BodyTimeout: It did not arrive in time.
            Overloaded: The process has no memory left for uploads.
            ClientDisconnect: The client hung up.
        """
        declared = self.headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > max_bytes:
            raise UploadTooLarge(max_bytes)
        return await self._limits.body_time.hold(self._read_body(max_bytes), self.timeline.arrived_at)

    async def _read_body(self, max_bytes: int) -> bytes:
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
            self._limits.take(len(chunk))
            self.received_bytes = size
            if not message.get("more_body", False):
                return b"".join([*chunks, chunk]) if chunks else chunk
            chunks.append(chunk)

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns, or cancel it when the client hangs up. To be called after the body was read.

        A watch task of our own: a task group of anyio costs many times as much (benchmarks/results/cancellation.json).

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
