"""Collects all metrics of the server for a scrape. Knows nothing of HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from vit_api import __version__, metrics
from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.ipc.answer_table import AnswerTable
from vit_api.ipc.cache_board import CacheBoard
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.slots import SlotTable
from vit_api.ipc.worker_board import WorkerBoard, WorkerState
from vit_api.metrics import Kind, Metric
from vit_api.web.operations.cache import shared_entries
from vit_api.web.operations.gpu_stats import GpuStats, read_gpu

_CACHE = {
    metrics.CACHE_HITS: "hits",
    metrics.CACHE_MISSES: "misses",
    metrics.CACHE_COALESCED: "coalesced",
    metrics.CACHE_ENTRIES: "entries",
    metrics.SHARED_HITS: "shared_hits",
    metrics.SHARED_REJECTED: "shared_rejected",
}
_REDIS = {
    metrics.REDIS_UP: "redis_up",
    metrics.REDIS_HITS: "redis_hits",
    metrics.REDIS_MISSES: "redis_misses",
    metrics.REDIS_REJECTED: "redis_rejected",
    metrics.REDIS_FAILURES: "redis_failures",
    metrics.REDIS_SKIPPED: "redis_skipped",
}

_GPU = {
    metrics.GPU_MEMORY_USED: "memory_used_bytes",
    metrics.GPU_MEMORY: "memory_total_bytes",
    metrics.GPU_UTILISATION: "utilization_ratio",
    metrics.GPU_POWER: "power_watts",
    metrics.GPU_ENERGY: "energy_joules",
}

Samples = Iterable[tuple[Sequence[str], float]]


class Sources(NamedTuple):
    """Where the metrics are read from.

    Attributes:
        checkpoint: The served model.
        metrics_board: The counters and histograms of all processes.
        worker_board: The workers' statuses.
        slots: The slots for images, by state.
        cache_board: The caches' counts.
        answer_table: The entries in shared memory; None if caching is off.
        has_redis: Whether there is a tier beyond this server.
    """

    checkpoint: Checkpoint
    metrics_board: MetricsBoard
    worker_board: WorkerBoard
    slots: SlotTable
    cache_board: CacheBoard
    answer_table: AnswerTable | None
    has_redis: bool


class MetricsCollector(Collector):
    """Collect the metrics of the whole server, in any of its HTTP processes.

    Args:
        sources: Where the metrics are read from.
        read_gpu: Returns the statistics of the GPU with a UUID.
    """

    def __init__(self, sources: Sources, read_gpu: Callable[[str], GpuStats | None] = read_gpu) -> None:
        self._sources = sources
        self._read_gpu = read_gpu

    def describe(self) -> list[Family]:
        """Return nothing, so that the registry does not collect when the collector is registered."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield every metric with its current values."""
        board = self._sources.metrics_board
        yield from (_counted(board, metric) for metric in board.metrics)
        yield from self._server()
        if self._sources.answer_table is not None:
            yield from self._caches(self._sources.cache_board.totals())
            entries = shared_entries(self._sources.cache_board, self._sources.answer_table)
            yield _family(metrics.SHARED_ENTRIES, [([], entries)])
        yield from _processes(self._sources.metrics_board.pids())
        yield from self._gpus()

    def _server(self) -> Iterator[Family]:
        workers, slots = self._sources.worker_board, self._sources.slots
        numbers = range(workers.workers)
        statuses = [workers.read(number) for number in numbers]
        checkpoint = self._sources.checkpoint
        states = Counter(status.state for status in statuses)
        yield _family(metrics.SLOTS, (([s.name.lower()], n) for s, n in slots.count_by_state().items()))
        yield _family(metrics.WORKERS, (([state.name.lower()], states[state]) for state in WorkerState))
        yield _family(metrics.READY, [([], workers.is_ready())])
        yield _family(metrics.WORKER_RESTARTS, (([str(n)], workers.restarts_of(n)) for n in numbers))
        yield _family(metrics.IMAGES, (([str(n)], workers.counts_of(n)[1]) for n in numbers))
        model = (checkpoint.name, checkpoint.revision or "")
        started = [(str(number), status) for number, status in enumerate(statuses) if status.device]
        infos = ((*model, n, w.device, w.device_name, w.dtype, w.engine) for n, w in started)
        yield _family(metrics.MODEL_INFO, ((labels, 1) for labels in infos))
        yield _family(metrics.STARTUP, (([n], w.startup_s) for n, w in started))
        yield _family(metrics.VERSION_INFO, [([__version__], 1)])

    def _caches(self, counts: dict[str, int]) -> Iterator[Family]:
        for metric, name in _CACHE.items():
            yield _family(metric, [([], counts[name])])
        if self._sources.has_redis:
            for metric, name in _REDIS.items():
                yield _family(metric, [([], counts[name])])

    def _gpus(self) -> Iterator[Family]:
        """Yield the GPU metrics that each GPU reports, once for each GPU however many workers it has."""
        workers = self._sources.worker_board
        statuses = (workers.read(number) for number in range(workers.workers))
        uuids = {status.device: status.device_uuid for status in statuses if status.device_uuid}
        stats = {device: self._read_gpu(uuid) for device, uuid in uuids.items()}
        for metric, name in _GPU.items():
            values = {device: getattr(gpu, name) for device, gpu in stats.items() if gpu is not None}
            samples = [([device], value) for device, value in values.items() if value is not None]
            if samples:
                yield _family(metric, samples)


def _counted(metrics_board: MetricsBoard, metric: Metric) -> Family:
    """Return a metric that is summed over all processes."""
    totals = metrics_board.totals(metric)
    if metric.kind is not Kind.HISTOGRAM:
        return _family(metric, ((values, numbers[0]) for values, numbers in totals.items()))
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    ends = [*map(str, metric.buckets), "+Inf"]
    for values, (*counts, total) in totals.items():
        cumulative, below = [], 0.0
        for end, count in zip(ends, counts, strict=True):
            below += count
            cumulative.append((end, below))
        family.add_metric(values, cumulative, total)
    return family


def _family(metric: Metric, samples: Samples) -> Family:
    make: Callable[..., GaugeMetricFamily | CounterMetricFamily]
    make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = make(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _processes(pids: dict[str, int]) -> Iterator[Family]:
    """Yield the operating system's metrics of each live process."""
    known: dict[str, list[tuple[Sequence[str], float]]] = {metric.name: [] for metric in metrics.PROCESS}
    for name, pid in pids.items():
        for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            for sample in family.samples:
                known[sample.name].append(([name], sample.value))
    for metric in metrics.PROCESS:
        yield _family(metric, known[metric.name])
