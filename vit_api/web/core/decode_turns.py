"""Threads that decode uploads in turns: fair between clients, the cheap before the dear, and none waits for ever.

Theory of operation
-------------------
Small images, by the CPU time that decoding is expected to take, come before large ones, until they have had as much CPU
time as the large one that waits: so a small picture overtakes any number of large ones, and a large one does not wait
for ever. Within the small and the large, clients share the CPU time (see `fair_queue`), and a client's image that came
at time t and costs c is due at t + 20 c; what is due first is next.

Images of low urgency come after all others, until these have had 7 times the CPU time of the one that waits.

Decoding can't be interrupted, so large images never take all threads, and what is decoded at once stays within a budget
of memory. An estimate may be wrong, since files lie. What runs for longer than a small image may counts as large from
then on, and a spare thread takes its place; further images of that client wait with the large for a while.

Knows nothing of slots and HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from vit_api.decoding.cost import Cost
from vit_api.urgency import Urgency
from vit_api.web.core.fair_queue import FairQueue, Item

logger = logging.getLogger(__name__)

LARGE_S = 0.05
"""Expected CPU time from which an image is large."""

OVERDUE_S = 2 * LARGE_S
"""Time after which a small image that is still being decoded counts as large."""

UNCOUNTED_BYTES = 4 * 2**20
"""An image that takes no more is not counted in the memory; each thread may have one."""

_DUE_AFTER = 20
"""An image is due after so many times the CPU time that it is expected to take."""

_LOW_SHARE = 8
"""Images of low urgency get one part in so many of the CPU time, if any wait, however many others do."""

_DOUBTED_IMAGES = 16
"""Images of a client that are taken for large after one that took far more than expected."""

_MAX_DOUBTED = 1024
_MIN_THREADS = 2
"""Besides the spare one: two images that take far more than expected leave a thread for others."""

_MAX_BLOCKED_S = 0.5
"""An image for which there was no memory for so long has it kept free."""


class _Turn:
    """The decoding of one image."""

    __slots__ = ("began_at", "blocked_at", "cost", "is_large", "is_overdue", "urgency", "work")

    def __init__(self, work: Callable[[], None], cost: Cost, urgency: Urgency) -> None:
        self.work = work
        self.urgency = urgency
        self.cost = cost
        self.is_large = False
        self.is_overdue = False
        self.began_at = 0.0
        self.blocked_at: float | None = None

    @property
    def counted_bytes(self) -> int:
        """Bytes that count in the memory."""
        return self.cost.held_bytes if self.cost.held_bytes > UNCOUNTED_BYTES else 0


class DecodeTurns:
    """Decode in threads. For one HTTP process.

    Args:
        threads: Images that are decoded at once; further threads take over while all are busy with images that take
            long.
        max_bytes: Memory that decoding may take at once, besides `UNCOUNTED_BYTES` for each thread; an image that alone
            takes more is decoded with no other.
        clock: Returns the time in seconds.
    """

    def __init__(self, threads: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._max_running = threads
        self._max_large = max(threads - 1, 1)
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._small: FairQueue[_Turn] = FairQueue()
        self._large: FairQueue[_Turn] = FairQueue()
        self._running: set[Item[_Turn]] = set()
        self._low: FairQueue[_Turn] = FairQueue()
        self._normal_s = 0.0  # of images of normal urgency that began since one of low urgency did
        self._small_s = 0.0  # of small images that began since a large one did
        self._running_large = self._running_bytes = self._running_exclusive = 0
        self._reserved: Item[_Turn] | None = None  # memory is kept free for it
        self._doubts: dict[str, int] = {}  # by client: images that are taken for large
        self._is_watched = self._is_stopped = False
        self._threads = [
            threading.Thread(target=self._run, name=f"decode_{number}", daemon=True)
            for number in range(max(threads, _MIN_THREADS) + 1)
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

    def submit(self, work: Callable[[], None], cost: Cost, client: str = "", urgency: Urgency = Urgency.NORMAL) -> None:
        """Have a thread do some work when it is its turn.

        Args:
            work: Decodes an image. Should not raise.
            cost: What that is expected to take.
            client: Who sent the image.
            urgency: How urgent the image is.
        """
        turn = _Turn(work, cost, urgency)
        item = Item(client, cost.cpu_s, self._clock() + _DUE_AFTER * cost.cpu_s, turn)
        with self._changed:
            turn.is_large = cost.cpu_s >= LARGE_S or client in self._doubts
            self._queue_of(turn).add(item)
            # While all threads are busy, waking the spare one would cost a switch of threads for each image.
            if len(self._running) < self._max_running or not self._is_watched:
                self._changed.notify()

    def _run(self) -> None:
        while (item := self._next()) is not None:
            began_s = time.thread_time()
            try:
                item.content.work()
            except Exception:
                logger.exception("decoding failed unexpectedly")
            cpu_s = time.thread_time() - began_s
            del item.content.work  # it holds the upload
            with self._changed:
                self._release(item, cpu_s)

    def _next(self) -> Item[_Turn] | None:
        """Wait for the turn that is next; None once the threads are to end."""
        with self._changed:
            while (item := self._take()) is None:
                if self._is_stopped:
                    return None
                self._wait()
            if len(self._running) < self._max_running and self._has_waiting:
                self._changed.notify()  # perhaps another one may run beside it
            return item

    def _wait(self) -> None:
        """Wait for a change; if images wait for one that may become overdue, for no longer than that."""
        if self._is_watched or not self._has_waiting:
            self._changed.wait()
            return
        self._is_watched = True
        self._changed.wait(OVERDUE_S / 2)
        self._is_watched = False

    def _take(self) -> Item[_Turn] | None:
        """Return the turn that is next, or None if there is none, or none that may run beside what is running."""
        if not self._has_waiting:
            return None
        self._find_overdue()
        item, low = None, self._low.peek()
        if low is not None and self._normal_s >= (_LOW_SHARE - 1) * low.cpu_s:
            item = self._low.pop(self._may_run)
        item = item or self._take_normal() or self._low.pop(self._may_run)
        if item is not None:
            self._begin(item)
        return item

    def _take_normal(self) -> Item[_Turn] | None:
        item = None
        large = self._large.peek()
        if large is not None and (not self._small or self._small_s >= large.cpu_s):
            item = self._large.pop(self._may_run)
        return item or self._small.pop(self._may_run) or self._large.pop(self._may_run)

    @property
    def _has_waiting(self) -> bool:
        return bool(self._small or self._large or self._low)

    def _queue_of(self, turn: _Turn) -> FairQueue[_Turn]:
        if turn.urgency:
            return self._low
        return self._large if turn.is_large else self._small

    def _find_overdue(self) -> None:
        """Count small images that have been running for too long as large."""
        now = self._clock()
        for item in self._running:
            turn = item.content
            if not turn.is_large and not turn.is_overdue and now - turn.began_at > OVERDUE_S:
                turn.is_overdue = True
                self._running_large += 1

    def _may_run(self, item: Item[_Turn]) -> bool:
        turn = item.content
        if turn.is_large:
            if self._running_large >= self._max_large or len(self._running) >= self._max_running:
                return False
        elif len(self._running) - self._running_large >= 1 and len(self._running) >= self._max_running:
            return False  # the spare thread is only for when all others take long
        if turn.cost.is_exclusive and self._running_exclusive:
            return False
        return self._has_memory(item)

    def _has_memory(self, item: Item[_Turn]) -> bool:
        turn = item.content
        needed = turn.counted_bytes
        if not needed or not self._running_bytes:
            return True
        is_kept_free = self._reserved is not None and self._reserved is not item
        if not is_kept_free and self._running_bytes + needed <= self._max_bytes:
            return True
        now = self._clock()
        turn.blocked_at = now if turn.blocked_at is None else turn.blocked_at
        if self._reserved is None and now - turn.blocked_at > _MAX_BLOCKED_S:
            self._reserved = item
        return False

    def _begin(self, item: Item[_Turn]) -> None:
        turn = item.content
        turn.began_at = self._clock()
        self._running.add(item)
        self._running_large += turn.is_large
        self._running_bytes += turn.counted_bytes
        self._running_exclusive += turn.cost.is_exclusive
        if turn.urgency:
            self._normal_s = 0.0
        else:
            self._small_s = 0.0 if turn.is_large else self._small_s + item.cpu_s
            self._normal_s += item.cpu_s if self._low else 0.0
        if turn.counted_bytes:
            self._reserved = None

    def _release(self, item: Item[_Turn], cpu_s: float) -> None:
        """Account for a turn that has ended."""
        turn = item.content
        self._running.discard(item)
        self._running_large -= turn.is_large or turn.is_overdue
        self._running_bytes -= turn.counted_bytes
        self._running_exclusive -= turn.cost.is_exclusive
        self._queue_of(turn).settle(item, cpu_s)
        if item.cpu_s < LARGE_S:
            self._judge(item, cpu_s)

    def _judge(self, item: Item[_Turn], cpu_s: float) -> None:
        """Doubt a client whose image took far more than expected, or believe it a little more."""
        client = item.client
        if cpu_s > OVERDUE_S:
            if len(self._doubts) >= _MAX_DOUBTED:
                self._doubts.clear()
            self._doubts[client] = _DOUBTED_IMAGES
            for waiting in self._small.remove_all_of(client):
                waiting.content.is_large = True
                self._large.add(waiting)
        elif client in self._doubts:
            self._doubts[client] -= 1
            if not self._doubts[client]:
                del self._doubts[client]
