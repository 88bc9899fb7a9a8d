"""Reads the bodies of requests, within the memory and the time that they may take."""

from __future__ import annotations

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from vit_api.errors import BodyTimeout, Overloaded, UploadTooLarge
from vit_api.web.eager import EagerStart
from vit_api.web.requests import BodyLimit, Request, RequestLimits
from vit_api.web.time_limit import TimeLimit


class BodyReader:
    """Read the bodies of a process's requests. For one event loop.

    Args:
        limits: The memory that all bodies may take together, and the time that one may take.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self._free_bytes = limits.max_pending_bytes
        self._time = TimeLimit(min(limits.body_timeout_s, limits.request_timeout_s), _late_body)

    async def read(self, request: Request, receive: Receive, limit: BodyLimit) -> None:
        """Read a request's body, or refuse it: at once by its declared length, else when it exceeds the limit.

        The memory is reserved, also if this raises, until `release`.

        Raises:
            UploadTooLarge: It has more bytes; the rest was not read.
            BodyTimeout: It did not arrive in time.
            Overloaded: The process has no memory left for uploads.
            ClientDisconnect: The client hung up.
        """
        declared = request.headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit.max_bytes:
            raise UploadTooLarge(limit.reported_bytes)
        reading = EagerStart(self._read(request, receive, limit))
        if not reading.is_done:  # most bodies arrive with their headers, and need no time limit
            await self._time.hold(reading.finish(), request.timeline.arrived_at)

    def release(self, request: Request) -> None:
        """Free the memory that is reserved for a request. To be called once."""
        self._free_bytes += request.received_bytes

    async def _read(self, request: Request, receive: Receive, limit: BodyLimit) -> None:
        chunks: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk: bytes = message.get("body", b"")
            size = request.received_bytes + len(chunk)
            if size > limit.max_bytes:
                raise UploadTooLarge(limit.reported_bytes)
            if len(chunk) > self._free_bytes:
                raise Overloaded("The server is overloaded: its memory for uploads is used up. Try again later.")
            self._free_bytes -= len(chunk)
            request.received_bytes = size
            if not message.get("more_body", False):
                request.body = b"".join([*chunks, chunk]) if chunks else chunk
                return
            chunks.append(chunk)


def _late_body() -> BodyTimeout:
    return BodyTimeout(
        "The request body did not arrive within the time limit. Send it faster, or send a smaller image."
    )
