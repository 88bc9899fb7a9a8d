"""The clients' usage, in Redis, for all servers. Knows nothing of their limits.

Redis may be slow, full or down at any time. Each request waits at most 10 ms for it, on its own timer, and not at all
for `_PAUSE_S` after a failure. What clients use while a round trip is in flight is collected: one command for each
window, however many requests there are.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from vit_api.access.rate_limiter import Charge

logger = logging.getLogger(__name__)

_TIMEOUT_S = 1.0
_PAUSE_S = 1.0
_WINDOWS_PER_ROUND = 8
_MAX_WAITING = 10_000
_PREFIX = "vit-api-limits"

_Waiter = asyncio.Future[int | None]


@dataclass
class _Window:
    """The pending amounts of one window.

    Attributes:
        window_s: The window's length in seconds.
        amount: The amount collected so far.
        waiters: The requests that wait for the total, each with the amount up to and including its own.
    """

    window_s: int
    amount: int = 0
    waiters: list[tuple[_Waiter, int]] = field(default_factory=list)


class RedisCounts:
    """Counts in Redis. For one HTTP process, on its event loop.

    Args:
        url: redis://, rediss:// or unix://.
        wait_s: Maximum time that a request waits for Redis, in seconds.
    """

    def __init__(self, url: str, wait_s: float = 0.010) -> None:
        # The scheme that `limits` has for a Redis behind a Unix socket.
        self._url = url.replace("unix://", "redis+unix://", 1) if url.startswith("unix://") else url
        self._wait_s = wait_s
        self._pending: dict[str, _Window] = {}
        self._is_up = True
        self._is_stopped = False
        self._sent_at: float | None = None
        self._paused_until = -math.inf

    def start(self) -> None:
        """Start counting, on the running event loop."""
        from limits.aio.storage import RedisStorage  # imported here: servers without a rate limit need not wait for it

        self._loop = asyncio.get_running_loop()
        self._storage = RedisStorage(
            f"async+{self._url}",
            implementation="redispy",
            key_prefix=_PREFIX,
            socket_connect_timeout=_TIMEOUT_S,
            max_connections=_WINDOWS_PER_ROUND,
        )
        self._has_pending = asyncio.Event()
        self._task = self._loop.create_task(self._repeat())

    async def stop(self) -> None:
        """Disconnect. Amounts that are not counted yet are lost."""
        self._is_stopped = True  # redis-py may swallow a cancellation
        self._task.cancel()
        await asyncio.wait([self._task], timeout=_TIMEOUT_S)
        self._skip_windows(self._pending.values())
        bridge: Any = self._storage.bridge
        await bridge.get_connection().aclose()

    async def add(self, charges: Sequence[Charge]) -> list[int] | None:
        """Add to the counts and return each window's total over all servers; None if Redis does not answer in time."""
        if self._is_stopped or self._loop.time() < self._paused_until or len(self._pending) >= _MAX_WAITING:
            return None
        waiters = [self._enqueue(charge) for charge in charges]
        self._has_pending.set()
        if self._is_slow():
            return None  # it is counted, but this request does not wait for it
        timer = self._loop.call_later(self._wait_s, self._skip, waiters)
        try:
            used = [await waiter for waiter in waiters]
        finally:
            timer.cancel()
        known = [count for count in used if count is not None]
        return known if len(known) == len(used) else None

    def _is_slow(self) -> bool:
        """Return whether the round trip in flight has taken longer than a request waits."""
        return self._sent_at is not None and self._loop.time() - self._sent_at > self._wait_s

    def _enqueue(self, charge: Charge) -> _Waiter:
        window = self._pending.setdefault(charge.name, _Window(charge.window_s))
        window.amount += charge.amount
        waiter: _Waiter = self._loop.create_future()
        window.waiters.append((waiter, window.amount))
        return waiter

    def _skip(self, waiters: Iterable[_Waiter]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _skip_windows(self, windows: Iterable[_Window]) -> None:
        for window in windows:
            self._skip(waiter for waiter, _ in window.waiters)

    async def _repeat(self) -> None:
        while not self._is_stopped:
            try:
                await self._count()
            except Exception as error:  # of Redis, of the network, or a bug: requests continue in any case
                self._paused_until = self._loop.time() + _PAUSE_S
                if self._is_up:
                    reason = str(error) or type(error).__name__
                    logger.warning(
                        "Redis can't count for the rate limit, so this server counts alone: %s",
                        reason,
                    )
                self._is_up = False
            else:
                if not self._is_up:
                    logger.info("Redis counts for the rate limit again.")
                self._is_up = True

    async def _count(self) -> None:
        """Send pending amounts to Redis, several windows in one round trip."""
        if not self._pending:
            self._has_pending.clear()
        await self._has_pending.wait()
        taken = {name: self._pending.pop(name) for name in list(itertools.islice(self._pending, _WINDOWS_PER_ROUND))}
        self._sent_at = self._loop.time()
        try:
            for window, used in zip(taken.values(), await self._ask(taken), strict=True):
                for waiter, amount in window.waiters:
                    if not waiter.done():
                        waiter.set_result(used - window.amount + amount)
        finally:
            self._sent_at = None
            self._skip_windows(taken.values())

    async def _ask(self, windows: Mapping[str, _Window]) -> list[int]:
        """Add the amounts and return the total of each window.

        Every reply is awaited, even if it comes too late for its waiters, so that the connections stay usable.
        """
        commands = [self._storage.incr(name, window.window_s, window.amount) for name, window in windows.items()]
        with anyio.fail_after(_TIMEOUT_S):
            replies = await asyncio.gather(*commands, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return [reply for reply in replies if isinstance(reply, int)]
