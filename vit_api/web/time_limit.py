"""One time limit for many tasks, with a single timer.

Used instead of a scope of asyncio or anyio for each request, which costs many times as much
(benchmarks/results/cancellation.json).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class TimeLimit:
    """Cancel what takes longer than `limit_s`. For one event loop.

    All tasks have the same limit, so the first to begin is the first to be late: one timer, for the oldest, serves all.

    Args:
        limit_s: Seconds.
        late: Returns the exception to raise.
        clock: The time in seconds.
    """

    def __init__(self, limit_s: float, late: Callable[[], Exception], clock: Callable[[], float] = time.monotonic):
        self._limit_s = limit_s
        self._late = late
        self._clock = clock
        self._ends: dict[asyncio.Task[Any], float] = {}  # in the order of their ends
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def hold(self, work: Coroutine[Any, Any, T], began_at: float) -> T:
        """Return what `work` returns.

        Args:
            work: What is limited.
            began_at: When its time began, by the clock; not before that of an earlier call.

        Raises:
            Exception: What `late` returns, if the time is up first; `work` was cancelled.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        # Without the loop given, Python before 3.12 asks the system for the process's id each time.
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._ends[task] = began_at + self._limit_s
        if self._timer is None:
            self._arm()
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._ends:  # cancelled by someone else
                raise
            task.uncancel()
            raise self._late() from None
        finally:
            self._ends.pop(task, None)

    def _arm(self) -> None:
        """Set the timer for the oldest."""
        end = next(iter(self._ends.values()))
        assert self._loop is not None
        self._timer = self._loop.call_later(max(0.0, end - self._clock()), self._cancel_late)

    def _cancel_late(self) -> None:
        now = self._clock()
        for task, end in list(self._ends.items()):
            if end > now:
                break
            del self._ends[task]
            task.cancel()
        self._timer = None
        if self._ends:
            self._arm()
