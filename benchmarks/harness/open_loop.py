"""A client that loads a server from the same cores: requests when they are due, whether or not it keeps up."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

_KEEP_ALIVE_S = 2.0


@dataclass(frozen=True)
class Reply:
    """One response.

    Attributes:
        status: Its status.
        has_retry_after: Whether it has a Retry-After.
        seconds: The latency, measured from when the request was due.
        done_at: When it was complete, in seconds of the monotonic clock.
        server_ms: The processing time that the server reported, if any.
    """

    status: int
    has_retry_after: bool
    seconds: float
    done_at: float
    server_ms: float | None


class Client:
    """Posts one body on as many persistent connections as needed.

    The bundled client would do, but takes more CPU time per request, and a refusal takes hardly any on the server.

    Args:
        port: Of the server, on this machine.
        body: The body of each request.
        path: The path of each.
        headers: Further header lines of each, with their ends.
    """

    def __init__(self, port: int, body: bytes, path: str = "/predict", headers: bytes = b"") -> None:
        self._port = port
        head = b"POST %s HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n" % (path.encode(), headers, len(body))
        self._request = head + body
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, due_at: float) -> Reply:
        """Send a request and return its reply."""
        reader, writer = await self._connection()
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
        now = time.monotonic()
        self._idle.append((now, reader, writer))
        timing = head.partition(b"server-timing: total;dur=")[2].split(b"\r\n")[0]
        server_ms = float(timing) if timing else None
        return Reply(int(head.split()[1]), b"retry-after:" in head, now - due_at, now, server_ms)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the most recently used connection, or a new one, since servers close idle ones."""
        if self._idle:
            used_at, reader, writer = self._idle.pop()
            if time.monotonic() - used_at < _KEEP_ALIVE_S:
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    def close(self) -> None:
        """Close the connections, none of which is in use."""
        for _, _, writer in self._idle:
            writer.close()

    async def closed_loop(self, connections: int, seconds: float) -> list[Reply]:
        """Post on this many connections, on each as soon as the previous request is answered."""
        end = time.monotonic() + seconds

        async def loop() -> list[Reply]:
            replies = []
            while (now := time.monotonic()) < end:
                replies.append(await self.post(now))
            return replies

        by_loop = await asyncio.gather(*(loop() for _ in range(connections)))
        self.close()
        return [reply for replies in by_loop for reply in replies]

    async def open_loop(self, per_s: float, seconds: float, seed: int | None = None) -> list[Reply]:
        """Post whether or not earlier requests are answered.

        Args:
            per_s: The mean rate.
            seconds: For how long.
            seed: Of random arrivals, as of many clients that know nothing of each other; None: at equal intervals.
        """
        random_gap = None if seed is None else random.Random(seed)
        due_at, end = time.monotonic(), time.monotonic() + seconds
        tasks = []
        while due_at < end:
            if (delay_s := due_at - time.monotonic()) > 0:
                await asyncio.sleep(delay_s)
            tasks.append(asyncio.create_task(self.post(due_at)))
            due_at += 1 / per_s if random_gap is None else random_gap.expovariate(per_s)
        replies = await asyncio.gather(*tasks)
        self.close()
        return list(replies)


def percentiles(values_ms: Sequence[float]) -> dict[str, float]:
    """Return the median and the 99th percentile; nothing of fewer than two values."""
    if len(values_ms) < 2:
        return {}
    cuts = statistics.quantiles(values_ms, n=100)
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2)}
