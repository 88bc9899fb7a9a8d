"""The caches' notice board, in shared memory: each HTTP process counts here, and all hear when caches are cleared.

Knows nothing of what is cached.
"""

from __future__ import annotations

import numpy as np

from vit_api.ipc.shared_memory import SharedArrays

COUNTS = (
    "entries",
    "hits",
    "misses",
    "coalesced",
    "redis_up",
    "redis_hits",
    "redis_misses",
    "redis_rejected",
    "redis_failures",
    "redis_skipped",
)


class CacheTally:
    """The counts of one HTTP process, which alone writes them.

    Args:
        board: Where they are.
        process: The number of the HTTP process.
    """

    def __init__(self, board: CacheBoard, process: int) -> None:
        self.board = board
        self._process = process
        self._counts = board.views

    def add(self, name: str, count: int = 1) -> None:
        """Add to a count."""
        self._counts[name][self._process] += count

    def set(self, name: str, count: int) -> None:
        """Set a count that goes up and down."""
        self._counts[name][self._process] = count

    def hear(self, epoch: int) -> None:
        """Note that this process has forgotten what is older than `epoch`."""
        self.board.heard[self._process] = epoch


class CacheBoard:
    """Counts of all HTTP processes, and how often their caches were cleared.

    Args:
        processes: HTTP processes.
    """

    def __init__(self, processes: int) -> None:
        self._shared = SharedArrays(
            {"epoch": (np.uint64, (1,)), "heard": (np.uint64, (processes,))}
            | dict.fromkeys(COUNTS, (np.uint64, (processes,)))
        )
        self.views = {name: self._shared.view(name) for name in COUNTS}
        self._epoch = self._shared.view("epoch")
        self.heard = self._shared.view("heard")

    @property
    def epoch(self) -> int:
        """How often the caches were cleared. A cache that last heard another number is to forget everything."""
        epoch: int = self._epoch[0]
        return epoch

    def clear(self) -> None:
        """Have every HTTP process forget what it remembers, before it next looks for anything.

        Two that call this at the same moment may count once: the number changes, which is all that matters.
        """
        self._epoch[0] += 1

    def totals(self) -> dict[str, int]:
        """Return each count's sum over all HTTP processes."""
        totals = {name: int(self._shared[name].sum()) for name in COUNTS}
        # A process that has not heard of the last clear forgets before it is next asked.
        has_heard = self._shared["heard"] == self._shared["epoch"]
        return totals | {"entries": int(self._shared["entries"][has_heard].sum())}
