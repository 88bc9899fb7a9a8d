"""Single flight among HTTP processes: one of them computes a key, the others wait for what it finds.

`single_flight` does the same within a process, and keeps the deadlines. Knows nothing of images, caches or HTTP.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from vit_api.ipc.flight_board import ProcessFlights

V = TypeVar("V")

_POLL_S = 0.2
"""Interval between two looks at a key that another process holds: if that process dies, it wakes no other."""


class Turn(NamedTuple, Generic[V]):
    """The outcome of `SharedFlights.claim`.

    Attributes:
        found: What another process computed; None if this process is to compute it.
        has_waited: Whether another process was computing it.
        is_held: Whether this process holds the claim, and must release it.
    """

    found: V | None
    has_waited: bool
    is_held: bool


class SharedFlights:
    """Claim keys that are to be computed. For one HTTP process, on its event loop.

    Args:
        flights: The claims.
    """

    def __init__(self, flights: ProcessFlights) -> None:
        self._flights = flights
        self._waiters: defaultdict[bytes, set[asyncio.Future[None]]] = defaultdict(set)

    def start(self) -> None:
        """Listen for keys that other processes release, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._flights.fileno(), self._wake_released)

    def stop(self) -> None:
        """Stop listening."""
        self._loop.remove_reader(self._flights.fileno())

    def claim_now(self, key: bytes) -> bool:
        """Claim a key unless it is being computed; return whether that succeeded, so that it must be released."""
        return self._flights.claim(key)

    def release(self, key: bytes) -> None:
        """Release a claim, once the result can be found, or if there is none."""
        self._flights.release(key)

    async def claim(self, key: bytes, find: Callable[[], V | None], max_wait_s: float) -> Turn[V]:
        """Claim a key, or wait until the process that computes it is done, has failed or has died.

        If there is no result then, one of the waiting processes gets the claim and the others wait for that one.

        Args:
            key: The key.
            find: Looks up what another process may have found.
            max_wait_s: After so many seconds the key is computed in any case: its process may be suspended.
        """
        if self._flights.claim(key):
            return self._claimed(key, find, has_waited=False)
        self._flights.begin_wait(key)
        try:
            end = self._loop.time() + max_wait_s
            while (found := find()) is None:
                if self._flights.claim(key):
                    return self._claimed(key, find, has_waited=True)
                left_s = end - self._loop.time()
                if left_s <= 0:
                    break
                await self._released(key, min(left_s, _POLL_S))
            return Turn(found, has_waited=True, is_held=False)
        finally:
            self._flights.end_wait(key)

    def _claimed(self, key: bytes, find: Callable[[], V | None], *, has_waited: bool) -> Turn[V]:
        """Look once more: it may have been computed just before it was claimed."""
        found = find()
        if found is not None:
            self._flights.release(key)
        return Turn(found, has_waited, is_held=found is None)

    async def _released(self, key: bytes, timeout_s: float) -> None:
        """Wait until a process releases a key, or the time is up."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, _wake, waiter)
        self._waiters[key].add(waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters[key].discard(waiter)
            if not self._waiters[key]:
                del self._waiters[key]

    def _wake_released(self) -> None:
        for key in self._flights.read():
            for waiter in self._waiters.get(key, ()):
                _wake(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
