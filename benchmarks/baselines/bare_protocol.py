"""The minimum for a cache hit in Python: an `asyncio.Protocol` on httptools and uvloop, without a framework.

It reads the body, hashes it, looks it up and sends the bare ASGI app's answer. It validates nothing, so it is an upper
limit and not a server. Argument: port.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from typing import cast

import httptools
import uvloop

from benchmarks.baselines.bare_asgi import ANSWER

_RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
_known: dict[bytes, bytes] = {}


class Bare(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start parsing requests."""
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        """Parse received bytes."""
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        """Collect a part of a body."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Answer a request."""
        key = hashlib.sha256(b"".join(self._body)).digest()
        self._body.clear()
        self._transport.write(_known.setdefault(key, _RESPONSE))


async def serve(port: int) -> None:
    """Serve until the process ends."""
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
