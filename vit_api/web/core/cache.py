"""Answers remembered for a while, and one computation for all who want the same thing at once.

Knows nothing of images, models or HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from cachetools import TTLCache

from vit_api.deadline import Deadline
from vit_api.errors import DeadlineExceeded
from vit_api.ipc.cache_board import CacheTally

V = TypeVar("V")


class AnswerCache(Generic[V]):
    """Remember values for a time; when full, forget the one that was asked for the longest ago.

    For one HTTP process. When the caches are cleared, wherever that was asked for, nothing older is found any more.

    Args:
        size: Values at the most.
        ttl_s: Seconds that a value is remembered.
        tally: Told how many values there are; its board tells when all are to be forgotten.
        clock: Seconds.
    """

    def __init__(
        self, size: int, ttl_s: float, tally: CacheTally, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ttl_s = ttl_s
        self._values: TTLCache[bytes, V] = TTLCache(size, ttl_s, timer=clock)
        self._tally = tally
        self._board = tally.board
        self._epoch = -1
        self.refresh()

    def get(self, key: bytes) -> V | None:
        """Return the value, or None if it isn't known or its time has passed."""
        if self._epoch != self._board.epoch:
            self.refresh()
        try:
            return self._values[key]
        except KeyError:
            return None

    def put(self, key: bytes, value: V) -> None:
        """Remember a value from now on."""
        self._forget_cleared()
        self._values[key] = value
        self._count()

    def refresh(self) -> None:
        """Forget what is too old, or everything if the caches were cleared since."""
        self._forget_cleared()
        self._count()

    def _forget_cleared(self) -> None:
        if self._epoch != self._board.epoch:
            self._epoch = self._board.epoch
            self._values.clear()
            self._tally.hear(self._epoch)

    def _count(self) -> None:
        self._tally.set("entries", len(self._values))  # which forgets what is too old


class _Flight(Generic[V]):
    """A computation under way and those who wait for it."""

    __slots__ = ("deadline", "task", "waiters")

    def __init__(self, task: asyncio.Task[V], deadline: Deadline) -> None:
        self.task = task
        self.deadline = deadline
        self.waiters: set[asyncio.Future[V]] = set()


class SingleFlight(Generic[V]):
    """Compute once for all who want the same key at the same time.

    Each waiter has its own deadline and may leave when it likes; the computation goes on until the last one has left,
    and is cancelled then. Its failure is everybody's failure. For one event loop.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[V]] = {}

    def is_in_flight(self, key: Hashable) -> bool:
        """Tell whether `key` is being computed, so that `join` would join it."""
        return key in self._flights

    async def join(self, key: Hashable, deadline: float, compute: Callable[[Deadline], Coroutine[Any, Any, V]]) -> V:
        """Wait for the computation of `key`, which starts here unless it is under way.

        Args:
            key: What is wanted.
            deadline: When to give up, in seconds of the monotonic clock.
            compute: Does it; gets the latest of the waiters' deadlines.

        Raises:
            DeadlineExceeded: It took too long for this waiter.
            Exception: Whatever `compute` raises.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._start(key, Deadline(deadline), compute)
        else:
            flight.deadline.extend(deadline)
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[V] = loop.create_future()
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), _expire, waiter)
        flight.waiters.add(waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._leave(key, flight, waiter)

    def _start(
        self, key: Hashable, deadline: Deadline, compute: Callable[[Deadline], Coroutine[Any, Any, V]]
    ) -> _Flight[V]:
        task = asyncio.get_running_loop().create_task(compute(deadline))
        flight = self._flights[key] = _Flight(task, deadline)
        task.add_done_callback(lambda _: self._land(key, flight))
        return flight

    def _leave(self, key: Hashable, flight: _Flight[V], waiter: asyncio.Future[V]) -> None:
        flight.waiters.discard(waiter)
        if not flight.waiters and not flight.task.done():
            self._forget(key, flight)  # whoever comes now starts anew
            flight.task.cancel()

    def _land(self, key: Hashable, flight: _Flight[V]) -> None:
        """Hand the outcome to everyone who still waits."""
        self._forget(key, flight)
        is_cancelled = flight.task.cancelled()
        error = None if is_cancelled else flight.task.exception()
        for waiter in flight.waiters:
            if waiter.done():
                continue
            if is_cancelled:
                waiter.cancel()
            elif error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(flight.task.result())

    def _forget(self, key: Hashable, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def _expire(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_exception(DeadlineExceeded("no answer within the time limit; try again later"))
