"""Threads that decode uploads in turns: the cheap before the dear, and none waits for ever.

Theory of operation
-------------------
Small images, by the CPU time that decoding is expected to take, come before large ones, until they have had as much CPU
time as the large one that waits: so a small picture overtakes any number of large ones, and a large one does not wait
for ever. Within the small and the large, an image that came at time t and costs c is due at t + 20 c, and what is due
first is next.

Images of low urgency come after all others, until these have had 7 times the CPU time of the one that waits.

Decoding can't be interrupted, so large images never take all threads, and what is decoded at once stays within a budget
of memory. Knows nothing of slots and HTTP.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

from vit_api.decoding.cost import Cost
from vit_api.urgency import Urgency

logger = logging.getLogger(__name__)

LARGE_S = 0.05
"""Expected CPU time from which an image is large."""

_DUE_AFTER = 20
"""An image is due after so many times the CPU time that it is expected to take."""

_LOW_SHARE = 8
"""Images of low urgency get one part in so many of the CPU time, if any wait, however many others do."""

_Turn = tuple[float, int, Cost, Callable[[], None]]
"""When it is due, a number that keeps the order of arrival, the cost and the work."""


class DecodeTurns:
    """Decode in threads. For one HTTP process.

    Args:
        threads: Number of threads.
        max_bytes: Memory that decoding may take at once; an image that alone takes more is decoded with no other.
        clock: Returns the time in seconds.
    """

    def __init__(self, threads: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._max_large = max(threads - 1, 1)
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._small: list[_Turn] = []
        self._large: list[_Turn] = []
        self._low: list[_Turn] = []
        self._normal_s = 0.0  # of images of normal urgency that began since one of low urgency did
        self._numbers = itertools.count()
        self._small_s = 0.0  # of small images that began since a large one did
        self._running_large = self._running_bytes = 0
        self._is_stopped = False
        self._threads = [
            threading.Thread(target=self._run, name=f"decode_{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Drop what has not begun; the threads end once they have finished what they decode."""
        with self._changed:
            self._is_stopped = True
            self._small.clear()
            self._large.clear()
            self._low.clear()
            self._changed.notify_all()

    def submit(self, work: Callable[[], None], cost: Cost, urgency: Urgency = Urgency.NORMAL) -> None:
        """Have a thread do some work when it is its turn.

        Args:
            work: Decodes an image. Should not raise.
            cost: What that is expected to take.
            urgency: How urgent the image is.
        """
        due = self._clock() + _DUE_AFTER * cost.cpu_s
        with self._changed:
            heapq.heappush(self._low if urgency else self._heap_of(cost), (due, next(self._numbers), cost, work))
            self._changed.notify()

    def _heap_of(self, cost: Cost) -> list[_Turn]:
        return self._large if cost.cpu_s >= LARGE_S else self._small

    def _run(self) -> None:
        while True:
            with self._changed:
                while (turn := self._take()) is None:
                    if self._is_stopped:
                        return
                    self._changed.wait()
                if self._small or self._large or self._low:
                    self._changed.notify()  # perhaps another one may run beside it
            try:
                turn[3]()
            except Exception:
                logger.exception("decoding failed unexpectedly")
            with self._changed:
                self._release(turn[2])

    def _take(self) -> _Turn | None:
        """Return the turn that is next, or None if there is none, or none that may run beside what is running."""
        low = bool(self._low) and self._may_run(self._low[0][2])
        if low and self._normal_s >= (_LOW_SHARE - 1) * self._low[0][2].cpu_s:
            return self._take_low()
        turn = self._take_normal()
        return self._take_low() if turn is None and low else turn

    def _take_low(self) -> _Turn:
        turn = heapq.heappop(self._low)
        self._normal_s = 0.0
        self._begin(turn[2])
        return turn

    def _take_normal(self) -> _Turn | None:
        small, large = (bool(heap) and self._may_run(heap[0][2]) for heap in (self._small, self._large))
        if not small and not large:
            return None
        is_large = large and (not small or self._small_s >= self._large[0][2].cpu_s)
        turn = heapq.heappop(self._large if is_large else self._small)
        cost = turn[2]
        self._small_s = 0.0 if is_large else self._small_s + cost.cpu_s
        if self._low:
            self._normal_s += cost.cpu_s
        self._begin(cost)
        return turn

    def _begin(self, cost: Cost) -> None:
        self._running_large += cost.cpu_s >= LARGE_S
        self._running_bytes += cost.held_bytes

    def _may_run(self, cost: Cost) -> bool:
        if cost.cpu_s >= LARGE_S and self._running_large >= self._max_large:
            return False
        return not self._running_bytes or self._running_bytes + cost.held_bytes <= self._max_bytes

    def _release(self, cost: Cost) -> None:
        self._running_large -= cost.cpu_s >= LARGE_S
        self._running_bytes -= cost.held_bytes
