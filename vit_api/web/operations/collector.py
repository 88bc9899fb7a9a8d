"""What a scrape says: gathers all metrics from where they are counted or known. Knows nothing of HTTP."""

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
from vit_api.ipc.cache_board import CacheBoard
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.slots import SlotTable
from vit_api.ipc.worker_board import WorkerBoard, WorkerState
from vit_api.metrics import Kind, Metric
from vit_api.web.operations.gpu_stats import GpuStats, read_gpu

_CACHE = {
    metrics.CACHE_HITS: "hits",
    metrics.CACHE_MISSES: "misses",
    metrics.CACHE_COALESCED: "coalesced",
    metrics.CACHE_ENTRIES: "entries",
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
    """Where the metrics are known.

    Attributes:
        checkpoint: The model.
        board: What is counted.
        workers: What the workers say of themselves.
        slots: Where the images are.
        cache: What the caches count; None if they are off.
        has_redis: Whether there is a shared tier.
    """

    checkpoint: Checkpoint
    board: MetricsBoard
    workers: WorkerBoard
    slots: SlotTable
    cache: CacheBoard | None
    has_redis: bool


class MetricsCollector(Collector):
    """Collect all metrics of the server, from whichever of its HTTP processes is asked.

    Args:
        sources: Where they are known.
        read_gpu: Asks a GPU, by its UUID, what it does.
    """

    def __init__(self, sources: Sources, read_gpu: Callable[[str], GpuStats | None] = read_gpu) -> None:
        self._sources = sources
        self._read_gpu = read_gpu

    def describe(self) -> list[Family]:
        """Name nothing in advance, so that the registry does not collect at its making."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield every metric with its present values."""
        yield from (_counted(self._sources.board, metric) for metric in metrics.COUNTED)
        yield from self._server()
        if self._sources.cache is not None:
            yield from self._caches(self._sources.cache.totals())
        yield from _processes(self._sources.board.pids())
        yield from self._gpus()

    def _server(self) -> Iterator[Family]:
        workers, slots = self._sources.workers, self._sources.slots
        numbers = range(workers.workers)
        notices = [workers.read(number) for number in numbers]
        checkpoint = self._sources.checkpoint
        states = Counter(notice.state for notice in notices)
        yield _family(metrics.SLOTS, (([s.name.lower()], n) for s, n in slots.count_by_state().items()))
        yield _family(metrics.WORKERS, (([state.name.lower()], states[state]) for state in WorkerState))
        yield _family(metrics.READY, [([], workers.is_ready())])
        yield _family(metrics.WORKER_RESTARTS, (([str(n)], workers.restarts_of(n)) for n in numbers))
        yield _family(metrics.IMAGES, (([str(n)], workers.counts_of(n)[1]) for n in numbers))
        model = (checkpoint.name, checkpoint.revision or "")
        started = [(str(number), notice) for number, notice in enumerate(notices) if notice.device]
        about = ((*model, n, w.device, w.device_name, w.dtype, w.engine) for n, w in started)
        yield _family(metrics.MODEL_INFO, ((labels, 1) for labels in about))
        yield _family(metrics.STARTUP, (([n], w.startup_s) for n, w in started))
        yield _family(metrics.VERSION_INFO, [([__version__], 1)])

    def _caches(self, counts: dict[str, int]) -> Iterator[Family]:
        for metric, name in _CACHE.items():
            yield _family(metric, [([], counts[name])])
        if self._sources.has_redis:
            for metric, name in _REDIS.items():
                yield _family(metric, [([], counts[name])])

    def _gpus(self) -> Iterator[Family]:
        """Yield what GPUs say, as far as they do; each once, however many workers it has."""
        workers = self._sources.workers
        notices = (workers.read(number) for number in range(workers.workers))
        uuids = {notice.device: notice.device_uuid for notice in notices if notice.device_uuid}
        stats = {device: self._read_gpu(uuid) for device, uuid in uuids.items()}
        for metric, name in _GPU.items():
            said = {device: getattr(of_one, name) for device, of_one in stats.items() if of_one is not None}
            samples = [([device], value) for device, value in said.items() if value is not None]
            if samples:
                yield _family(metric, samples)


def _counted(board: MetricsBoard, metric: Metric) -> Family:
    """Return a metric that processes count."""
    totals = board.totals(metric)
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
    """Yield what the system says of each process; nothing of one that is dead."""
    known: dict[str, list[tuple[Sequence[str], float]]] = {metric.name: [] for metric in metrics.PROCESS}
    for name, pid in pids.items():
        for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            for sample in family.samples:
                known[sample.name].append(([name], sample.value))
    for metric in metrics.PROCESS:
        yield _family(metric, known[metric.name])
