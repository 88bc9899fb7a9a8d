"""The counts behind the metrics, in shared memory: a column for each process, which alone writes it.

prometheus_client's own way with several processes, a file for each, takes 5 us for the four counts of a cache hit; this
takes 1.3. A process that replaces a dead one goes on with its column, so nothing is lost or counted twice. Knows
nothing of what is counted.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vit_api.ipc.shared_memory import SharedArrays
from vit_api.metrics import Kind, Metric


class Counter:
    """One series of a counter, for the process that counts. Not for several threads."""

    __slots__ = ("_place", "_view")

    def __init__(self, view: Any, place: int) -> None:
        self._view = view
        self._place = place

    def add(self, count: float = 1) -> None:
        """Add to it."""
        self._view[self._place] += count


class Histogram:
    """One series of a histogram, for the process that observes. Not for several threads.

    Its places are: a count for each bucket, one for what is above all, and the sum.
    """

    __slots__ = ("_buckets", "_first", "_sum", "_view")

    def __init__(self, view: Any, first: int, buckets: tuple[float, ...]) -> None:
        self._view = view
        self._first = first
        self._buckets = buckets
        self._sum = first + len(buckets) + 1

    def observe(self, value: float) -> None:
        """Add a value, in the metric's unit."""
        self._view[self._first + bisect_left(self._buckets, value)] += 1
        self._view[self._sum] += value


class MetricsWriter:
    """What one process counts with.

    Args:
        board: Where the counts are.
        column: The process's.
    """

    def __init__(self, board: MetricsBoard, column: int) -> None:
        self._board = board
        self._column = column

    def counter(self, metric: Metric, *values: str) -> Counter:
        """Return the series of a counter with these labels' values."""
        return Counter(self._board.view(metric), self._board.place(metric, self._column, values))

    def histogram(self, metric: Metric, *values: str) -> Histogram:
        """Return the series of a histogram with these labels' values."""
        first = self._board.place(metric, self._column, values)
        return Histogram(self._board.view(metric), first, metric.buckets)


class MetricsBoard:
    """The counts of all processes.

    Args:
        processes: Their names.
        metrics: What is counted.
    """

    def __init__(self, processes: Sequence[str], metrics: Iterable[Metric]) -> None:
        self.processes = tuple(processes)
        sizes = {metric.name: _width(metric) * len(metric.series) for metric in metrics}
        self._shared = SharedArrays(
            {"pid": (np.int64, (len(processes),))}
            | {name: (np.float64, (len(processes) * size,)) for name, size in sizes.items()}
        )

    def metrics_writer(self, process: str) -> MetricsWriter:
        """Return what the calling process counts with; from now on it is the one of this name."""
        column = self.processes.index(process)
        self._shared["pid"][column] = os.getpid()
        return MetricsWriter(self, column)

    def pids(self) -> dict[str, int]:
        """Return the ids of the processes that have started, by name; some may have died since."""
        return {name: int(pid) for name, pid in zip(self.processes, self._shared["pid"], strict=True) if pid}

    def view(self, metric: Metric) -> Any:
        """Return the memory of a metric."""
        return self._shared.view(metric.name)

    def place(self, metric: Metric, column: int, values: tuple[str, ...]) -> int:
        """Return where a series of a process begins."""
        series = metric.series
        return (column * len(series) + series.index(values)) * _width(metric)

    def totals(self, metric: Metric) -> dict[tuple[str, ...], list[float]]:
        """Return each series' sum over all processes: of a counter one number, of a histogram its places."""
        width = _width(metric)
        sums = self._shared[metric.name].reshape(len(self.processes), -1, width).sum(axis=0)
        return {values: [float(x) for x in row] for values, row in zip(metric.series, sums, strict=True)}


def _width(metric: Metric) -> int:
    """Return how many numbers a series has."""
    return len(metric.buckets) + 2 if metric.kind is Kind.HISTOGRAM else 1
