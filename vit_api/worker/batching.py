"""When a batch is dispatched to the device. Pure: functions of times and counts, without I/O or a clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

_TIMES_THE_WAIT = 10


@dataclass(frozen=True)
class BatchingPolicy:
    """The rules by which a batch is dispatched.

    Attributes:
        max_batch_size: Maximum number of images in a batch.
        max_wait_s: Maximum seconds that the oldest image of a batch waits, counted from when it was queued.
        shared_cores: Number of cores that decoding and the model share; None if the model has a device of its own.
    """

    max_batch_size: int
    max_wait_s: float
    shared_cores: int | None = None

    def remaining_wait_s(self, *, now: float, size: int, oldest_queued_at: float, incoming: int) -> float:
        """Return how long a batch may still wait for more images.

        A batch is dispatched as soon as it is full, its oldest image has waited `max_wait_s`, or no other image is
        incoming. The last rule makes a single request as fast as a server without batching; it needs no prediction,
        since the slot table shows which images are incoming.

        Args:
            now: The time, in seconds of the same clock as `oldest_queued_at`.
            size: Number of images in the batch so far.
            oldest_queued_at: When the oldest of them was queued.
            incoming: Number of images that are being decoded, or queued and not yet in a batch.

        Returns:
            Seconds; 0 if the batch must be dispatched now, infinity if it is empty.
        """
        if size == 0:
            return math.inf
        if size >= self.max_batch_size or incoming == 0:
            return 0.0
        return max(0.0, oldest_queued_at + self.max_wait_s - now)

    def should_leave_cores(self, *, waiting: int, decoding: int, waited_s: float) -> bool:
        """Return whether to begin no batch yet, since all cores decode what fills it: on the CPU, under high load.

        No core is idle meanwhile, and a full batch takes less CPU time per image. An image waits for this at most ten
        times as long as `max_wait_s`.

        Args:
            waiting: Number of images that are queued and not yet in a batch.
            decoding: Number of images that are being decoded, or wait for that.
            waited_s: Seconds since the oldest of those that wait was queued.
        """
        if self.shared_cores is None or not 0 < waiting < self.max_batch_size:
            return False
        will_be_full = waiting + decoding >= self.max_batch_size
        return will_be_full and decoding >= self.shared_cores and waited_s < _TIMES_THE_WAIT * self.max_wait_s

    def should_stage(self, waiting: int) -> bool:
        """Return whether to stage the next batch while the device still computes the current one.

        Only a full batch is staged, so that it is there when the device becomes free. A smaller one would be computed
        no sooner, and images that arrive meanwhile could not join it. Once the device is free, `remaining_wait_s`
        decides.

        Args:
            waiting: Number of images that are queued and not yet in a batch.
        """
        return waiting >= self.max_batch_size
