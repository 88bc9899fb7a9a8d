"""When a batch goes to the device. Pure: a function of a clock and counts, with no I/O and no clock of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchingPolicy:
    """The rules by which a batch that is being collected goes.

    Attributes:
        max_batch_size: Images in a batch at the most.
        max_wait_s: Seconds that the oldest image of a batch waits at the most, from its arrival in the queue.
    """

    max_batch_size: int
    max_wait_s: float

    def remaining_wait_s(self, *, now: float, size: int, oldest_queued_at: float, coming: int) -> float:
        """Return how long a batch may still wait for company.

        A batch goes as soon as it is full, its oldest image has waited `max_wait_s`, or nobody else is on the way.
        The last rule makes a lone request as fast as a server without batching; it needs no guess, since the slot
        table knows who is coming.

        Args:
            now: The time, in the same clock as `oldest_queued_at`, in seconds.
            size: Images in the batch so far.
            oldest_queued_at: When the oldest of them was queued.
            coming: Images that are being decoded or are queued and not yet in a batch.

        Returns:
            Seconds; 0 if the batch must go now, infinity if it is empty.
        """
        if size == 0:
            return math.inf
        if size >= self.max_batch_size or coming == 0:
            return 0.0
        return max(0.0, oldest_queued_at + self.max_wait_s - now)

    def should_stage(self, waiting: int) -> bool:
        """Tell whether a batch goes to a device that is busy with another one, to be computed after it.

        A full one does, so that it is there when the device is free. Any other waits: sent now it would be computed no
        sooner, and those who come meanwhile could not join it. When the device is free, `remaining_wait_s` decides.

        Args:
            waiting: Images that are queued and not yet in a batch.
        """
        return waiting >= self.max_batch_size
