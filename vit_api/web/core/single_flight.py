"""One computation for all callers that want the same thing at the same time.

Knows nothing of images, caches or HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from vit_api.errors import DeadlineExceeded

V = TypeVar("V")


class FlightDeadline:
    """When the last waiter of a computation gives up: later, if one joins that waits longer.

    Args:
        at: In seconds of the monotonic clock.

    Attributes:
        at: See above.
        on_extend: Called with the new time; set by the computation.
    """

    __slots__ = ("at", "on_extend")

    def __init__(self, at: float) -> None:
        self.at = at
        self.on_extend: Callable[[float], None] | None = None

    def extend(self, at: float) -> None:
        """Allow for a waiter that gives up at `at`."""
        if at > self.at:
            self.at = at
            if self.on_extend is not None:
                self.on_extend(at)


class _Flight(Generic[V]):
    """A computation in flight and its waiters."""

    __slots__ = ("deadline", "task", "waiters")

    def __init__(self, task: asyncio.Task[V], deadline: FlightDeadline) -> None:
        self.task = task
        self.deadline = deadline
        self.waiters: set[asyncio.Future[V]] = set()


class SingleFlight(Generic[V]):
    """Share one computation among all concurrent callers with the same key. For one event loop.

    Each waiter has a deadline of its own and may be cancelled without affecting the others. The computation runs until
    its last waiter has left, and is cancelled then. If it fails, every waiter gets its exception.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[V]] = {}

    @property
    def has_any(self) -> bool:
        """Whether anything is being computed."""
        return bool(self._flights)

    def is_in_flight(self, key: Hashable) -> bool:
        """Return whether `key` is being computed, so that `join` would wait for that."""
        return key in self._flights

    async def join(
        self, key: Hashable, deadline: float, compute: Callable[[FlightDeadline], Coroutine[Any, Any, V]]
    ) -> V:
        """Wait for the computation of `key`, and start it unless it is in flight.

        Args:
            key: Identifies the result.
            deadline: When this waiter gives up, in seconds of the monotonic clock.
            compute: Computes the result, by the deadline of its last waiter; cancelled when that has left.

        Raises:
            DeadlineExceeded: The deadline passed first.
            Exception: Whatever `compute` raises.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._start(key, FlightDeadline(deadline), compute)
        else:
            flight.deadline.extend(deadline)
        waiter: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        timer = expire_at(waiter, deadline)
        flight.waiters.add(waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._leave(key, flight, waiter)

    def settle(self, key: Hashable, value: V) -> None:
        """Give a value that was found elsewhere to all who wait for `key`, if any do; its computation is cancelled."""
        flight = self._flights.pop(key, None)
        if flight is None:
            return
        for waiter in flight.waiters:
            if not waiter.done():
                waiter.set_result(value)
        flight.task.cancel()

    def _start(
        self,
        key: Hashable,
        deadline: FlightDeadline,
        compute: Callable[[FlightDeadline], Coroutine[Any, Any, V]],
    ) -> _Flight[V]:
        task = asyncio.get_running_loop().create_task(compute(deadline))
        flight = self._flights[key] = _Flight(task, deadline)
        task.add_done_callback(lambda _: self._complete(key, flight))
        return flight

    def _leave(self, key: Hashable, flight: _Flight[V], waiter: asyncio.Future[V]) -> None:
        flight.waiters.discard(waiter)
        if not flight.waiters and not flight.task.done():
            self._discard(key, flight)  # the next caller starts a new one
            flight.task.cancel()

    def _complete(self, key: Hashable, flight: _Flight[V]) -> None:
        """Pass the outcome to every waiter."""
        self._discard(key, flight)
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

    def _discard(self, key: Hashable, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def expire_at(waiter: asyncio.Future[Any], deadline: float) -> asyncio.TimerHandle:
    """Tell a waiter at its deadline that its time is up, unless it has been told something before.

    Args:
        waiter: What is waited for.
        deadline: In seconds of the monotonic clock.
    """
    return waiter.get_loop().call_later(max(0.0, deadline - time.monotonic()), _expire, waiter)


def _expire(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_exception(DeadlineExceeded("The request was not answered within its time limit. Try again later."))
