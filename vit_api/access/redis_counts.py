"""What clients have used up, in Redis, for all servers. Knows nothing of how much they may use.

As the tier of predictions (`redis_tier`), Redis may be slow, full or gone at any time. A request waits for it by a
timer of its own, for 10 ms at the most, and not at all for `_PAUSE_S` after a failure. What clients use while a
round is under way is collected: one command a window, however many requests.
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

_DEAD_S = 1.0
_PAUSE_S = 1.0
_AT_ONCE = 8
_MOST_WAITING = 10_000
_PREFIX = "vit-api-limits"

_Waiter = asyncio.Future[int | None]


@dataclass
class _Window:
    """What is to be counted in one window.

    Attributes:
        window_s: Its length in seconds.
        amount: How much, so far.
        waiters: Who waits for the sum, each with how much it was with that one's share.
    """

    window_s: int
    amount: int = 0
    waiters: list[tuple[_Waiter, int]] = field(default_factory=list)


class RedisCounts:
    """Count in Redis. For one HTTP process, on its event loop.

    Args:
        url: redis://, rediss:// or unix://.
        wait_s: How long a request waits for Redis at the most, in seconds.
    """

    def __init__(self, url: str, wait_s: float = 0.010) -> None:
        # So `limits` names Redis behind a Unix socket, and tells it from its likes.
        self._url = url.replace("unix://", "redis+unix://", 1) if url.startswith("unix://") else url
        self._wait_s = wait_s
        self._wanted: dict[str, _Window] = {}
        self._is_up = True
        self._is_stopped = False
        self._asked_at: float | None = None
        self._paused_until = -math.inf

    def start(self) -> None:
        """Begin to count, on the running event loop."""
        from limits.aio.storage import RedisStorage  # takes 0.2 s, which only those need who use it

        self._loop = asyncio.get_running_loop()
        self._storage = RedisStorage(
            f"async+{self._url}",
            implementation="redispy",
            key_prefix=_PREFIX,
            socket_connect_timeout=_DEAD_S,
            max_connections=_AT_ONCE,
        )
        self._is_wanted = asyncio.Event()
        self._task = self._loop.create_task(self._repeat())

    async def stop(self) -> None:
        """Disconnect. What is not counted yet is forgotten."""
        self._is_stopped = True  # redis-py may swallow a cancellation
        self._task.cancel()
        await asyncio.wait([self._task], timeout=_DEAD_S)
        self._give_up(self._wanted.values())
        bridge: Any = self._storage.bridge
        await bridge.get_connection().aclose()

    async def add(self, charges: Sequence[Charge]) -> list[int] | None:
        """Count, and return what was used in each window, in all servers; None if Redis doesn't tell in time."""
        if self._is_stopped or self._loop.time() < self._paused_until or len(self._wanted) >= _MOST_WAITING:
            return None
        waiters = [self._want(charge) for charge in charges]
        self._is_wanted.set()
        if self._is_slow():
            return None  # it will be counted, but is not waited for
        timer = self._loop.call_later(self._wait_s, self._skip, waiters)
        try:
            used = [await waiter for waiter in waiters]
        finally:
            timer.cancel()
        known = [count for count in used if count is not None]
        return known if len(known) == len(used) else None

    def _is_slow(self) -> bool:
        """Tell whether Redis has taken too long for its waiters over the round that is under way."""
        return self._asked_at is not None and self._loop.time() - self._asked_at > self._wait_s

    def _want(self, charge: Charge) -> _Waiter:
        window = self._wanted.setdefault(charge.name, _Window(charge.window_s))
        window.amount += charge.amount
        waiter: _Waiter = self._loop.create_future()
        window.waiters.append((waiter, window.amount))
        return waiter

    def _skip(self, waiters: Iterable[_Waiter]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _give_up(self, windows: Iterable[_Window]) -> None:
        for window in windows:
            self._skip(waiter for waiter, _ in window.waiters)

    async def _repeat(self) -> None:
        while not self._is_stopped:
            try:
                await self._count()
            except Exception as error:  # of Redis, of the network, or a bug: requests go on in any case
                self._paused_until = self._loop.time() + _PAUSE_S
                if self._is_up:
                    reason = str(error) or type(error).__name__
                    logger.warning("Redis can't count what clients use, this server counts for itself: %s", reason)
                self._is_up = False
            else:
                if not self._is_up:
                    logger.info("Redis counts what clients use")
                self._is_up = True

    async def _count(self) -> None:
        """Have Redis count what is wanted, much of it at once."""
        if not self._wanted:
            self._is_wanted.clear()
        await self._is_wanted.wait()
        taken = {name: self._wanted.pop(name) for name in list(itertools.islice(self._wanted, _AT_ONCE))}
        self._asked_at = self._loop.time()
        try:
            for window, used in zip(taken.values(), await self._ask(taken), strict=True):
                for waiter, amount in window.waiters:
                    if not waiter.done():
                        waiter.set_result(used - window.amount + amount)
        finally:
            self._asked_at = None
            self._give_up(taken.values())

    async def _ask(self, windows: Mapping[str, _Window]) -> list[int]:
        """Return what was used in each window, once what is wanted is added.

        Awaits every reply, also those that come too late for their waiters: the connections stay usable.
        """
        commands = [self._storage.incr(name, window.window_s, window.amount) for name, window in windows.items()]
        with anyio.fail_after(_DEAD_S):
            replies = await asyncio.gather(*commands, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return [reply for reply in replies if isinstance(reply, int)]
