"""The times of all batches by their sizes, in shared memory: a row for each worker, its only writer.

Knows nothing of what the times are used for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from vit_api.ipc.shared_memory import SharedArrays

_TIMES = ("input_s", "infer_s", "output_s")


class BatchTotals(NamedTuple):
    """All batches of one size.

    Attributes:
        size: Images in each.
        batches: Their number.
        input_s: Seconds of staging, in total.
        infer_s: Seconds of the model's forward pass, in total.
        output_s: Seconds from its end until the answers were written, in total.
    """

    size: int
    batches: int
    input_s: float
    infer_s: float
    output_s: float


class BatchStats:
    """The totals of each worker.

    Args:
        workers: Number of workers.
        max_batch_size: Maximum number of images in a batch.
    """

    def __init__(self, workers: int, max_batch_size: int) -> None:
        self._sizes = max_batch_size + 1
        cells = workers * self._sizes
        shared = SharedArrays(
            {"last_at": (np.float64, (workers,)), "count": (np.uint64, (cells,))}
            | dict.fromkeys(_TIMES, (np.float64, (cells,)))
        )
        self._bind(shared)

    def _bind(self, shared: SharedArrays) -> None:
        self._shared = shared
        self._last_at, self._count, *self._times = (shared.view(name) for name in ("last_at", "count", *_TIMES))

    def __getstate__(self) -> dict[str, Any]:
        return {"sizes": self._sizes, "shared": self._shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._sizes = state["sizes"]
        self._bind(state["shared"])

    def add(self, worker: int, size: int, times_s: tuple[float, float, float], now: float) -> None:
        """Count a batch that the model ran to its end.

        Args:
            worker: Its worker.
            size: Images in it.
            times_s: Seconds of staging, of the forward pass, and from its end until the answers were written.
            now: The time, in seconds since the Unix epoch.
        """
        cell = worker * self._sizes + size
        input_s, infer_s, output_s = self._times
        input_s[cell] += times_s[0]
        infer_s[cell] += times_s[1]
        output_s[cell] += times_s[2]
        self._count[cell] += 1
        self._last_at[worker] = now

    def last_at(self) -> float:
        """Return when the last batch was done, in seconds since the Unix epoch; 0 if there was none."""
        return float(self._shared["last_at"].max())

    def totals(self) -> list[BatchTotals]:
        """Return the totals of each size that occurred, over all workers."""
        counts, *times = (
            self._shared[name].reshape(-1, self._sizes).sum(axis=0).tolist() for name in ("count", *_TIMES)
        )
        return [
            BatchTotals(size, int(count), *(column[size] for column in times))
            for size, count in enumerate(counts)
            if count
        ]
