"""The values behind the metrics, in shared memory: a column for each process, its only writer.

Used instead of prometheus_client's multiprocess mode, which has a file for each process, because it is faster
(benchmarks/results/metrics_cost.json). A process that replaces a dead one continues its column, so nothing is lost or
counted twice. Knows nothing of what is counted.
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
    """One series of a counter, in one process. Not thread-safe."""

    __slots__ = ("_cell", "_view")

    def __init__(self, view: Any, cell: int) -> None:
        self._view = view
        self._cell = cell

    def add(self, count: float = 1) -> None:
        """Increment it."""
        self._view[self._cell] += count


class Histogram:
    """One series of a histogram, in one process. Not thread-safe.

    Its cells are a count for each bucket, one for the +Inf bucket, and the sum.
    """

    __slots__ = ("_buckets", "_first", "_sum", "_view")

    def __init__(self, view: Any, first: int, buckets: tuple[float, ...]) -> None:
        self._view = view
        self._first = first
        self._buckets = buckets
        self._sum = first + len(buckets) + 1

    def observe(self, value: float) -> None:
        """Observe a value, in the metric's unit."""
        self._view[self._first + bisect_left(self._buckets, value)] += 1
        self._view[self._sum] += value

    def observe_several(self, value: float, count: int) -> None:
        """Observe so many values in one bucket, given their mean."""
        self._view[self._first + bisect_left(self._buckets, value)] += count
        self._view[self._sum] += value * count


class MetricsWriter:
    """Gives one process the series that it writes.

    Args:
        metrics_board: Holds the values.
        column: The process's column.
    """

    def __init__(self, metrics_board: MetricsBoard, column: int) -> None:
        self._metrics_board = metrics_board
        self._column = column

    def counter(self, metric: Metric, *values: str) -> Counter:
        """Return the series of a counter with these label values."""
        return Counter(self._metrics_board.view(metric), self._metrics_board.cell(metric, self._column, values))

    def histogram(self, metric: Metric, *values: str) -> Histogram:
        """Return the series of a histogram with these label values."""
        first = self._metrics_board.cell(metric, self._column, values)
        return Histogram(self._metrics_board.view(metric), first, metric.buckets)


class MetricsBoard:
    """The values of all processes.

    Args:
        processes: The names of the processes.
        metrics: The metrics that they write, with all values of their labels.

    Attributes:
        processes: See above.
        metrics: See above.
    """

    def __init__(self, processes: Sequence[str], metrics: Iterable[Metric]) -> None:
        self.processes = tuple(processes)
        self.metrics = tuple(metrics)
        self._by_name = {metric.name: metric for metric in self.metrics}
        sizes = {metric.name: _width(metric) * len(metric.series) for metric in self.metrics}
        self._shared = SharedArrays(
            {"pid": (np.int64, (len(processes),))}
            | {name: (np.float64, (len(processes) * size,)) for name, size in sizes.items()}
        )

    def metrics_writer(self, process: str) -> MetricsWriter:
        """Return the writer of the calling process, which becomes the process of this name."""
        column = self.processes.index(process)
        self._shared["pid"][column] = os.getpid()
        return MetricsWriter(self, column)

    def pids(self) -> dict[str, int]:
        """Return the ids of the processes that have started, by name; some may be dead."""
        return {name: int(pid) for name, pid in zip(self.processes, self._shared["pid"], strict=True) if pid}

    def view(self, metric: Metric) -> Any:
        """Return the memory of a metric."""
        return self._shared.view(metric.name)

    def cell(self, metric: Metric, column: int, values: tuple[str, ...]) -> int:
        """Return the first cell of a series of a process."""
        series = self._by_name[metric.name].series
        return (column * len(series) + series.index(values)) * _width(metric)

    def totals(self, metric: Metric) -> dict[tuple[str, ...], list[float]]:
        """Return the sum of each series over all processes: one number for a counter, all cells for a histogram."""
        series = self._by_name[metric.name].series
        sums = self._shared[metric.name].reshape(len(self.processes), len(series), _width(metric)).sum(axis=0)
        return {values: [float(x) for x in row] for values, row in zip(series, sums, strict=True)}


def _width(metric: Metric) -> int:
    """Return the number of cells of a series."""
    return len(metric.buckets) + 2 if metric.kind is Kind.HISTOGRAM else 1
