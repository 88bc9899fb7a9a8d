"""Many concurrent HTTP clients in one event loop, cheap enough to share the cores with the server."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One response."""

    status: int
    headers: dict[str, str]
    body: Any


async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes) -> Reply:
    """Send one request on an open connection and read its response."""
    head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    content = await reader.readexactly(int(headers["content-length"]))
    return Reply(int(status_line.split()[1]), headers, json.loads(content))


async def _client(port: int, path: str, bodies: list[bytes], barrier: asyncio.Barrier) -> list[Reply]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await barrier.wait()
        return [await post(reader, writer, path, body) for body in bodies]
    finally:
        writer.close()
        await writer.wait_closed()


def refuses_connections(port: int) -> bool:
    """Return whether nothing listens on a local port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except ConnectionRefusedError:
        return True
    return False


def post_all(port: int, bodies_by_client: list[list[bytes]], path: str = "/predict") -> list[list[Reply]]:
    """Run one client for each list of bodies, all at once; each sends its bodies one by one."""

    async def run() -> list[list[Reply]]:
        barrier = asyncio.Barrier(len(bodies_by_client))  # no request before every client is connected
        tasks = [asyncio.create_task(_client(port, path, bodies, barrier)) for bodies in bodies_by_client]
        return list(await asyncio.gather(*tasks))

    return asyncio.run(asyncio.wait_for(run(), 120))
