"""The memory that the bodies of requests may take, and the decoding of compressed ones within it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from vit_api.errors import Overloaded
from vit_api.web.content_coding import decode
from vit_api.web.requests import BodyLimit, Request

_MAX_RATIO = 1032
"""Maximum ratio of deflate's output to its input; see "Maximum Compression Factor" in zlib's technical details."""


class BodyMemory:
    """The memory of the bodies of a process's requests. For one event loop.

    Args:
        max_bytes: What all of them may take together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free_bytes = max_bytes

    def reserve(self, request: Request, count: int) -> None:
        """Reserve memory for a request, until `release`, or free some of it if `count` is negative.

        Raises:
            Overloaded: So many bytes are not free.
        """
        if count > self._free_bytes:
            raise Overloaded("The server is overloaded: its memory for uploads is used up. Try again later.")
        self._free_bytes -= count
        request.reserved_bytes += count

    def release(self, request: Request) -> None:
        """Free the memory that is reserved for a request. To be called once."""
        self._free_bytes += request.reserved_bytes

    async def decode(self, request: Request, codings: Sequence[bytes], limit: BodyLimit) -> None:
        """Decode a request's compressed body, in a thread, since a few bytes may become millions.

        Raises:
            BadRequest: It is not of its coding, or is truncated.
            UploadTooLarge: The result exceeds the limit.
            Overloaded: There is no memory for the result.
        """
        body = request.take_body()
        # While it is being decoded, its size is unknown. With several codings, each may multiply it.
        reserved = min(limit.max_bytes, len(body) * _MAX_RATIO ** len(codings))
        self.reserve(request, reserved)
        request.body = await asyncio.get_running_loop().run_in_executor(None, decode, body, codings, limit)
        self.reserve(request, len(request.body) - reserved)
