"""The bundled load client: one process's share of a load, in a closed or an open loop.

Latency is measured from the moment a request was due. In an open loop that is its place in the schedule, whether or not
the client or the server was ready for it, so that a stall shows in every request that it delayed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import aiohttp

from vit_api.load import uploads

_OK = 200
_REPEATED_FROM = 64
"""The number of most recent uploads that a repeated one is drawn from."""


class Surge(NamedTuple):
    """A time in which an open loop sends `times` as much, in seconds from the end of the warm-up."""

    start_s: float
    end_s: float
    times: float


@dataclass(frozen=True)
class LoadPlan:
    """What one client process does.

    Attributes:
        url: The URL to post to.
        pictures: The uploads to post.
        concurrency: Connections of a closed loop; None means an open loop.
        rate: Requests/s of an open loop.
        surge: When an open loop sends more.
        is_poisson: Whether an open loop's arrivals are random or evenly spaced.
        warm_up_s: Seconds of load before the measurement.
        seconds: Seconds of load that are measured.
        repeat_share: Share of requests that send an earlier upload again; the others are unique.
        is_form: Whether the upload is a form's field `file` or the raw body.
        headers: Additional headers.
        timeout_s: The timeout of one request.
        seed: The seed of all random choices.
    """

    url: str
    pictures: tuple[bytes, ...]
    concurrency: int | None = None
    rate: float = 0.0
    surge: Surge | None = None
    is_poisson: bool = True
    warm_up_s: float = 2.0
    seconds: float = 10.0
    repeat_share: float = 0.0
    is_form: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 60.0
    seed: int = 0

    def rate_at(self, seconds: float) -> float:
        """Return the requests/s of an open loop at a time."""
        surge = self.surge
        return self.rate * (surge.times if surge and surge.start_s <= seconds < surge.end_s else 1)


class Reply(NamedTuple):
    """The result of one request.

    Attributes:
        intended_s: When it was due, in seconds from the end of the warm-up.
        sent_s: When it was sent.
        done_s: When its response was complete.
        outcome: `ok`, the error's code, or how the connection failed.
        cache: The response's `x-cache`.
        batch_size: Images in its batch; 0 if it was in none.
        queue_ms: Its wait in the server's queue.
        inference_ms: How long its batch ran.
    """

    intended_s: float
    sent_s: float
    done_s: float
    outcome: str
    cache: str = ""
    batch_size: int = 0
    queue_ms: float = 0.0
    inference_ms: float = 0.0


class Shift(NamedTuple):
    """What one client process did: its replies, and its CPU time as a share of the measured time."""

    replies: list[Reply]
    cpu_share: float


def work(plan: LoadPlan, progress: Callable[[], None] = lambda: None) -> Shift:
    """Run one process's share of a load; `progress` is called after each request."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # an open loop needs one connection per waiting request
    return asyncio.run(_Client(plan, progress).run())


class _Client:
    def __init__(self, plan: LoadPlan, progress: Callable[[], None]) -> None:
        self._plan = plan
        self._progress = progress
        self._dice = random.Random(plan.seed)
        self._sent: list[bytes] = []
        self._headers = dict(plan.headers) | {"content-type": uploads.FORM if plan.is_form else uploads.RAW}

    async def run(self) -> Shift:
        """Load the server; return what was measured."""
        plan = self._plan
        timeout = aiohttp.ClientTimeout(total=plan.timeout_s)
        connector = aiohttp.TCPConnector(limit=plan.concurrency or 0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            self._start = time.monotonic() + plan.warm_up_s
            cpu = asyncio.create_task(self._cpu_share())
            replies = await (self._closed_loop() if plan.concurrency else self._open_loop())
            return Shift([reply for reply in replies if reply.intended_s >= 0], await cpu)

    async def _cpu_share(self) -> float:
        await asyncio.sleep(self._plan.warm_up_s)
        before = time.process_time(), time.monotonic()
        await asyncio.sleep(self._plan.seconds)
        return (time.process_time() - before[0]) / (time.monotonic() - before[1])

    async def _closed_loop(self) -> list[Reply]:
        async def one_connection() -> list[Reply]:
            replies = []
            while (now_s := time.monotonic() - self._start) < self._plan.seconds:
                replies.append(await self._post(now_s))
            return replies

        assert self._plan.concurrency is not None
        by_connection = await asyncio.gather(*(one_connection() for _ in range(self._plan.concurrency)))
        return [reply for replies in by_connection for reply in replies]

    async def _open_loop(self) -> list[Reply]:
        plan = self._plan
        intended_s, tasks = -plan.warm_up_s, []
        while intended_s < plan.seconds:
            delay_s = self._start + intended_s - time.monotonic()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            tasks.append(asyncio.create_task(self._post(intended_s)))
            # Arrivals are independent: the gaps of a Poisson process are exponentially distributed.
            rate = plan.rate_at(intended_s)
            intended_s += self._dice.expovariate(rate) if plan.is_poisson else 1 / rate
        return await asyncio.gather(*tasks)

    async def _post(self, intended_s: float) -> Reply:
        body = self._upload()
        if self._plan.is_form:
            body = uploads.as_form(body)
        sent_s = time.monotonic() - self._start
        try:
            async with self._session.post(self._plan.url, data=body, headers=self._headers) as response:
                content = await response.read()
                status, headers = response.status, response.headers
        except TimeoutError:
            return self._done(intended_s, sent_s, "timeout")
        except (aiohttp.ClientError, OSError) as error:
            return self._done(intended_s, sent_s, type(error).__name__)
        return self._done(intended_s, sent_s, "ok" if status == _OK else _code(status, content), headers)

    def _done(self, intended_s: float, sent_s: float, outcome: str, headers: Mapping[str, str] | None = None) -> Reply:
        self._progress()
        headers = headers or {}
        return Reply(
            intended_s,
            sent_s,
            time.monotonic() - self._start,
            outcome,
            headers.get("x-cache", ""),
            int(headers.get("x-batch-size", 0)),
            float(headers.get("x-queue-time-ms", 0)),
            float(headers.get("x-inference-time-ms", 0)),
        )

    def _upload(self) -> bytes:
        """Return a unique upload, or one of the most recent ones."""
        if self._sent and self._dice.random() < self._plan.repeat_share:
            return self._dice.choice(self._sent)
        upload = self._dice.choice(self._plan.pictures) + uploads.FREE_BOX + os.urandom(16)
        if self._plan.repeat_share:
            self._sent = [*self._sent[1 - _REPEATED_FROM :], upload]
        return upload


def _code(status: int, content: bytes) -> str:
    """Return the code in an error's body, or else its status."""
    try:
        return str(json.loads(content)["code"])
    except (ValueError, KeyError, TypeError):
        return f"status {status}"
