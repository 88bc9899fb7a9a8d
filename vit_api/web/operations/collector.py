"""Collects all metrics of the server for a scrape. Knows nothing of HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

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
from vit_api.ipc.worker_board import WorkerBoard, WorkerState, WorkerStatus
from vit_api.metrics import Kind, Metric
from vit_api.shared.server import Shared
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


class ModelSources(NamedTuple):
    """Where the metrics of one model are read from.

    Attributes:
        checkpoint: The model.
        metrics_board: Its counters and histograms, of all processes.
        worker_board: The statuses of its workers.
        cache_board: The counts of its caches.
        answer_table: Its entries in shared memory; None if caching is off.
        version: The version; None if the server has one model only, which is then in no label.
        traffic: Percentage of the model's clients that the version serves.
        first_worker: The number of its first worker.
        is_mirror: Whether it computes what other versions have answered.
    """

    checkpoint: Checkpoint
    metrics_board: MetricsBoard
    worker_board: WorkerBoard
    cache_board: CacheBoard
    answer_table: AnswerTable | None
    version: str | None = None
    traffic: float = 100.0
    first_worker: int = 0
    is_mirror: bool = False

    @property
    def label_values(self) -> tuple[str, ...]:
        """The values of the labels `metrics.OF_MODEL`, if it has them."""
        return () if self.version is None else (self.checkpoint.name, self.version)


class Sources(NamedTuple):
    """Where the metrics are read from.

    Attributes:
        models: The sources of each model.
        slots: The slots for images, by state.
        is_ready: Returns whether the server accepts images.
        has_redis: Whether there is a tier beyond this server.
        metrics_board: The counters and histograms that belong to no model; None if there is one model, which has them.
    """

    models: Sequence[ModelSources]
    slots: SlotTable
    is_ready: Callable[[], bool]
    has_redis: bool
    metrics_board: MetricsBoard | None = None


def sources_of(shared: Shared, *, has_redis: bool) -> Sources:
    """Return the sources of a server."""
    models = [
        ModelSources(
            one.checkpoint,
            one.metrics_board,
            one.worker_board,
            one.cache_board,
            one.answer_table,
            one.spec.version if shared.has_several else None,
            one.spec.traffic or 0.0,
            one.first_worker,
            bool(one.spec.mirror_traffic),
        )
        for one in shared.deployments
    ]
    board = shared.metrics_board if shared.has_several else None
    return Sources(models, shared.table, shared.readiness.is_ready, has_redis, board)


class MetricsCollector(Collector):
    """Collect the metrics of the whole server, in any of its HTTP processes.

    With several models, the metrics of each have its name and version as labels.

    Args:
        sources: Where the metrics are read from.
        read_gpu: Returns the statistics of the GPU with a UUID.
    """

    def __init__(self, sources: Sources, read_gpu: Callable[[str], GpuStats | None] = read_gpu) -> None:
        self._sources = sources
        self._models = sources.models
        self._has_several = sources.metrics_board is not None
        self._read_gpu = read_gpu

    def describe(self) -> list[Family]:
        """Return nothing, so that the registry does not collect when the collector is registered."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield every metric with its current values."""
        yield from self._counted()
        yield from self._server()
        if self._has_several:
            yield self._of_models(metrics.DEPLOYMENT_READY, lambda one: [((), one.worker_board.is_ready())])
            yield self._of_models(metrics.TRAFFIC, lambda one: [((), one.traffic / 100)])
        if self._models[0].answer_table is not None:
            yield from self._caches()
        yield from _processes(self._pids())
        yield from self._gpus()

    def _counted(self) -> Iterator[Family]:
        """Yield the metrics that are summed over all processes."""
        boards = [(one.label_values, one.metrics_board, _shown(one)) for one in self._models]
        if (board := self._sources.metrics_board) is not None:
            boards.insert(0, (("", ""), board, board.metrics))  # of what belongs to no model
        families: dict[str, Any] = {}
        for values, board, shown in boards:
            for metric in shown:
                own = values if self._has_labels(metric) else ()
                family = families.get(metric.name)
                if family is None:
                    family = families[metric.name] = _empty(metric, metrics.OF_MODEL if own else ())
                _add_totals(family, metric, own, board)
        yield from families.values()

    def _has_labels(self, metric: Metric) -> bool:
        return self._has_several and metric not in metrics.SERVER_WIDE

    def _of_models(self, metric: Metric, samples_of: Callable[[ModelSources], Samples]) -> Family:
        """Return a metric whose values are read from each model."""
        is_labelled = metric.labels[-2:] == metrics.OF_MODEL
        family = _empty(metric, metrics.OF_MODEL if self._has_several and not is_labelled else ())
        for one in self._models:
            for values, number in samples_of(one):
                family.add_metric([*values, *one.label_values], number)
        result: Family = family
        return result

    def _server(self) -> Iterator[Family]:
        slots = self._sources.slots
        yield _family(metrics.SLOTS, (([s.name.lower()], n) for s, n in slots.count_by_state().items()))
        yield self._of_models(metrics.WORKERS, _states)
        yield _family(metrics.READY, [([], self._sources.is_ready())])
        yield self._of_models(metrics.WORKER_RESTARTS, lambda one: _by_worker(one, one.worker_board.restarts_of))
        yield self._of_models(metrics.IMAGES, lambda one: _by_worker(one, lambda n: one.worker_board.counts_of(n)[1]))
        yield self._model_info()
        yield self._of_models(
            metrics.STARTUP, lambda one: [([number], status.startup_s) for number, status in _started(one)]
        )
        yield _family(metrics.VERSION_INFO, [([__version__], 1)])

    def _model_info(self) -> Family:
        family = _empty(metrics.MODEL_INFO, metrics.OF_MODEL[1:] if self._has_several else ())
        for one in self._models:
            model = (one.checkpoint.name, one.checkpoint.revision or "")
            for number, w in _started(one):
                values = (*model, number, w.device, w.device_name, w.dtype, w.engine, *one.label_values[1:])
                family.add_metric(values, 1)
        result: Family = family
        return result

    def _caches(self) -> Iterator[Family]:
        counts = [(one, one.cache_board.totals()) for one in self._models]
        for metric, name in (*_CACHE.items(), *(_REDIS.items() if self._sources.has_redis else ())):
            family = _empty(metric, metrics.OF_MODEL if self._has_several else ())
            for one, totals in counts:
                family.add_metric(one.label_values, totals[name])
            yield family
        yield self._of_models(metrics.SHARED_ENTRIES, _shared_entries)

    def _pids(self) -> dict[str, int]:
        """Return the ids of all processes, by name."""
        if self._sources.metrics_board is None:
            return self._models[0].metrics_board.pids()
        workers = {
            name: pid
            for one in self._models
            for name, pid in one.metrics_board.pids().items()
            if name.startswith("worker-")
        }
        return self._sources.metrics_board.pids() | workers

    def _gpus(self) -> Iterator[Family]:
        """Yield the GPU metrics that each GPU reports, once for each GPU however many workers it has."""
        statuses = [status for one in self._models for status in _statuses(one)]
        uuids = {status.device: status.device_uuid for status in statuses if status.device_uuid}
        stats = {device: self._read_gpu(uuid) for device, uuid in uuids.items()}
        for metric, name in _GPU.items():
            values = {device: getattr(gpu, name) for device, gpu in stats.items() if gpu is not None}
            samples = [([device], value) for device, value in values.items() if value is not None]
            if samples:
                yield _family(metric, samples)


def _statuses(one: ModelSources) -> list[WorkerStatus]:
    return [one.worker_board.read(number) for number in range(one.worker_board.workers)]


def _states(one: ModelSources) -> Samples:
    states = Counter(status.state for status in _statuses(one))
    return [([state.name.lower()], states[state]) for state in WorkerState]


def _started(one: ModelSources) -> list[tuple[str, WorkerStatus]]:
    """Return the numbers and statuses of the workers that have started."""
    numbered = enumerate(_statuses(one), one.first_worker)
    return [(str(number), status) for number, status in numbered if status.device]


def _by_worker(one: ModelSources, value_of: Callable[[int], float]) -> Samples:
    numbers = range(one.worker_board.workers)
    return [([str(one.first_worker + number)], value_of(number)) for number in numbers]


def _shared_entries(one: ModelSources) -> Samples:
    return [] if one.answer_table is None else [([], shared_entries(one.cache_board, one.answer_table))]


def _shown(model: ModelSources) -> Sequence[Metric]:
    """Return what a model counts, without that of mirrors if it has never been one."""
    board = model.metrics_board
    if model.is_mirror:
        return board.metrics

    def is_counted(metric: Metric) -> bool:
        return any(any(numbers) for numbers in board.totals(metric).values())

    return [metric for metric in board.metrics if metric not in metrics.MIRROR or is_counted(metric)]


def _add_totals(family: Any, metric: Metric, own: Sequence[str], metrics_board: MetricsBoard) -> None:
    """Add the series of a metric, summed over all processes, with further label values."""
    totals = metrics_board.totals(metric)
    if metric.kind is not Kind.HISTOGRAM:
        for values, numbers in totals.items():
            family.add_metric([*values, *own], numbers[0])
        return
    ends = [*map(str, metric.buckets), "+Inf"]
    for values, (*counts, total) in totals.items():
        cumulative, below = [], 0.0
        for end, count in zip(ends, counts, strict=True):
            below += count
            cumulative.append((end, below))
        family.add_metric([*values, *own], cumulative, total)


_KINDS: dict[Kind, Callable[..., Any]] = {
    Kind.COUNTER: CounterMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
    Kind.HISTOGRAM: HistogramMetricFamily,
}


def _empty(metric: Metric, labels: Sequence[str] = ()) -> Any:
    """Return a metric without series, with further labels."""
    return _KINDS[metric.kind](metric.name.removesuffix("_total"), metric.help, labels=[*metric.labels, *labels])


def _family(metric: Metric, samples: Samples) -> Family:
    family = _empty(metric)
    for values, number in samples:
        family.add_metric(values, number)
    result: Family = family
    return result


def _processes(pids: dict[str, int]) -> Iterator[Family]:
    """Yield the operating system's metrics of each live process."""
    known: dict[str, list[tuple[Sequence[str], float]]] = {metric.name: [] for metric in metrics.PROCESS}
    for name, pid in pids.items():
        for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
            for sample in family.samples:
                known[sample.name].append(([name], sample.value))
    for metric in metrics.PROCESS:
        yield _family(metric, known[metric.name])
