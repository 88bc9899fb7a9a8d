"""Reads the bodies of requests, within the memory and the time that they may take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from vit_api.errors import BodyTimeout, Overloaded, UploadTooLarge
from vit_api.web.content_coding import codings_of, decode
from vit_api.web.eager import EagerStart
from vit_api.web.requests import BodyLimit, Request, RequestLimits
from vit_api.web.time_limit import TimeLimit

_MAX_RATIO = 1032
"""Maximum ratio of deflate's output to its input; see "Maximum Compression Factor" in zlib's technical details."""


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

        A compressed body is decoded. The memory is reserved, also if this raises, until `release`.

        Raises:
            UnsupportedEncoding: It has a coding that can't be decoded.
            BadRequest: It is not of its coding, or is truncated.
            UploadTooLarge: It has more bytes; the rest was not read.
            BodyTimeout: It did not arrive in time.
            Overloaded: The process has no memory left for uploads.
            ClientDisconnect: The client hung up.
        """
        declared = request.headers.get(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit.max_bytes:
            raise UploadTooLarge(limit.reported_bytes)
        encoding = request.headers.get(b"content-encoding")
        codings = codings_of(encoding) if encoding else ()
        reading = EagerStart(self._read(request, receive, limit))
        if not reading.is_done:  # most bodies arrive with their headers, and need no time limit
            await self._time.hold(reading.finish(), request.timeline.arrived_at)
        if codings:
            await self._decode(request, codings, limit)

    def release(self, request: Request) -> None:
        """Free the memory that is reserved for a request. To be called once."""
        self._free_bytes += request.reserved_bytes

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
            self._reserve(request, len(chunk))
            request.received_bytes = size
            if not message.get("more_body", False):
                request.body = b"".join([*chunks, chunk]) if chunks else chunk
                return
            chunks.append(chunk)

    async def _decode(self, request: Request, codings: Sequence[bytes], limit: BodyLimit) -> None:
        """Decode a compressed body, in a thread, since a few bytes may become millions."""
        body = request.take_body()
        # While it is being decoded, its size is unknown. With several codings, each may multiply it.
        reserved = min(limit.max_bytes, len(body) * _MAX_RATIO ** len(codings))
        self._reserve(request, reserved)
        request.body = await asyncio.get_running_loop().run_in_executor(None, decode, body, codings, limit)
        self._reserve(request, len(request.body) - reserved)

    def _reserve(self, request: Request, count: int) -> None:
        """Reserve memory for a request, or free some of it if `count` is negative.

        Raises:
            Overloaded: So many bytes are not free.
        """
        if count > self._free_bytes:
            raise Overloaded("The server is overloaded: its memory for uploads is used up. Try again later.")
        self._free_bytes -= count
        request.reserved_bytes += count


def _late_body() -> BodyTimeout:
    return BodyTimeout(
        "The request body did not arrive within the time limit. Send it faster, or send a smaller image."
    )
