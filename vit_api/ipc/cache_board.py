"""The caches' board, in shared memory: the counts of every HTTP process, and the epoch by which all caches are cleared.

Knows nothing of what is cached.
"""

from __future__ import annotations

import numpy as np

from vit_api.ipc.shared_memory import SharedArrays

COUNTS = (
    "entries",
    "long_entries",
    "hits",
    "misses",
    "coalesced",
    "shared_hits",
    "shared_rejected",
    "redis_up",
    "redis_hits",
    "redis_misses",
    "redis_rejected",
    "redis_failures",
    "redis_skipped",
)


class CacheTally:
    """The counts of one HTTP process, their only writer.

    Args:
        cache_board: Holds the counts.
        process: The number of the HTTP process.
    """

    def __init__(self, cache_board: CacheBoard, process: int) -> None:
        self.cache_board = cache_board
        self._process = process
        self._counts = cache_board.views

    def add(self, name: str, count: int = 1) -> None:
        """Increment a counter."""
        self._counts[name][self._process] += count

    def set(self, name: str, count: int) -> None:
        """Set a gauge."""
        self._counts[name][self._process] = count

    def acknowledge(self, epoch: int) -> None:
        """Publish that this process has evicted everything older than `epoch`."""
        self.cache_board.acknowledged[self._process] = epoch


class CacheBoard:
    """The counts of all HTTP processes, and the epoch: how often their caches were cleared.

    Args:
        processes: Number of HTTP processes.
    """

    def __init__(self, processes: int) -> None:
        self._shared = SharedArrays(
            {"epoch": (np.uint64, (1,)), "acknowledged": (np.uint64, (processes,))}
            | dict.fromkeys(COUNTS, (np.uint64, (processes,)))
        )
        self.views = {name: self._shared.view(name) for name in COUNTS}
        self._epoch = self._shared.view("epoch")
        self.acknowledged = self._shared.view("acknowledged")

    @property
    def epoch(self) -> int:
        """How often the caches were cleared. A cache filled in another epoch must evict everything."""
        epoch: int = self._epoch[0]
        return epoch

    def clear(self) -> None:
        """Have every HTTP process evict its entries before its next look-up.

        Two simultaneous calls may count as one: all that matters is that the number changes.
        """
        self._epoch[0] += 1

    def totals(self) -> dict[str, int]:
        """Return the sum of each count over all HTTP processes."""
        totals = {name: int(self._shared[name].sum()) for name in COUNTS}
        # A process that has not acknowledged the last clear evicts its entries before its next look-up.
        is_current = self._shared["acknowledged"] == self._shared["epoch"]
        entries = self._shared["entries"] + self._shared["long_entries"]
        return totals | {"entries": int(entries[is_current].sum())}
