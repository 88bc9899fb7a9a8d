"""The metrics in shared memory, without a server."""

from __future__ import annotations

import multiprocessing as mp
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from vit_api import metrics
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.errors import ViTError
from vit_api.ipc.cache_board import CacheBoard
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.slots import SlotTable
from vit_api.ipc.worker_board import WorkerBoard, WorkerState, WorkerStatus
from vit_api.metrics import Kind, Metric
from vit_api.web.operations.collector import MetricsCollector, ModelSources, Sources
from vit_api.web.operations.gpu_stats import GpuStats

_COUNTER = Metric("sheep_total", Kind.COUNTER, "Sheep", ("colour", "size"), (("black", "white"), ("1", "2")))
_HISTOGRAM = Metric("wait_seconds", Kind.HISTOGRAM, "Waits", ("who",), (("a", "b"),), (0.5, 1.0, 2.0))


@pytest.fixture
def board() -> MetricsBoard:
    return MetricsBoard(["one", "two"], [_COUNTER, _HISTOGRAM])


def test_series_add_up_over_processes(board: MetricsBoard) -> None:
    """Each process has its own column, and each series its own cells."""
    for process, times in (("one", 3), ("two", 4)):
        metrics_writer = board.metrics_writer(process)
        for number, values in enumerate(_COUNTER.series):
            for _ in range(times):
                metrics_writer.counter(_COUNTER, *values).add(number)
    assert board.totals(_COUNTER) == {values: [7.0 * number] for number, values in enumerate(_COUNTER.series)}


@given(st.lists(st.floats(0, 10)))
def test_a_histogram_counts_as_prometheus_does(waits: list[float]) -> None:
    """Values go to the same buckets as in prometheus_client, and a bucket includes its upper bound."""
    board = MetricsBoard(["one"], [_HISTOGRAM])
    theirs = Histogram("wait_seconds", "", buckets=_HISTOGRAM.buckets, registry=CollectorRegistry())
    ours = board.metrics_writer("one").histogram(_HISTOGRAM, "b")
    for wait_s in waits:
        ours.observe(wait_s)
        theirs.observe(wait_s)
    *counts, total = board.totals(_HISTOGRAM)[("b",)]
    (family,) = theirs.collect()
    cumulative = [sample.value for sample in family.samples if sample.name == "wait_seconds_bucket"]
    assert [sum(counts[: end + 1]) for end in range(len(counts))] == cumulative
    assert total == pytest.approx(sum(waits))
    assert board.totals(_HISTOGRAM)[("a",)] == [0.0] * 5


def _count_one(board: MetricsBoard) -> None:
    board.metrics_writer("two").counter(_COUNTER, "black", "1").add()


def test_a_successor_continues_the_column(board: MetricsBoard) -> None:
    """A process spawned like a worker keeps the counts of its dead predecessor."""
    pids = []
    for _ in range(2):
        process = mp.get_context("spawn").Process(target=_count_one, args=(board,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        pids.append(process.pid)
    assert board.totals(_COUNTER)[("black", "1")] == [2.0]
    assert board.pids() == {"two": pids[-1]}


def test_names_follow_the_conventions() -> None:
    """Names follow Prometheus' conventions; labels of counted metrics have known values, which bounds the series."""
    assert len({metric.name for metric in metrics.ALL}) == len(metrics.ALL)
    for metric in metrics.ALL:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        is_counted = metric in (*metrics.COUNTED, *metrics.MODERATION, *metrics.MIRROR)
        assert len(metric.values) == (len(metric.labels) if is_counted else 0)


def test_every_failure_is_counted() -> None:
    """The series of reasons and statuses are derived from the error classes, so that new ones are included."""
    assert {ViTError.code, "overloaded", "bad_image"} <= set(metrics.REASONS)
    assert {"200", "499", "500", "503", "504"} <= set(metrics.STATUSES)


def _collect(read_gpu: Callable[[str], GpuStats | None], *devices: str) -> dict[tuple[str, str], float]:
    """Return the GPU metrics in a scrape of workers on these devices, by metric and device."""
    workers = WorkerBoard(len(devices))
    for number, device in enumerate(devices):
        uuid = f"GPU-{device}" if device.startswith("cuda") else ""
        workers.publish(number, WorkerStatus(WorkerState.READY, device, "a chip", "float16", device_uuid=uuid))
    counts = MetricsBoard(["http-0"], metrics.COUNTED)
    model = ModelSources(load_checkpoint("digits", None), counts, workers, CacheBoard(1), None)
    sources = Sources([model], SlotTable(1, 1, (1, 1, 3)), workers.is_ready, has_redis=False)
    families = MetricsCollector(sources, read_gpu).collect()
    return {(s.name, s.labels["device"]): s.value for f in families if f.name.startswith("gpu_") for s in f.samples}


def test_each_gpu_is_reported_once() -> None:
    """Several workers may share a GPU; values that it doesn't report are absent, not 0."""

    def read_gpu(uuid: str) -> GpuStats | None:
        return {
            "GPU-cuda:0": GpuStats(1, 2, 0.5, 70.0, 1e6),
            "GPU-cuda:1": GpuStats(3, 4, None, None, None),
        }.get(uuid)

    said = _collect(read_gpu, "cuda:0", "cuda:0", "cuda:1", "cuda:2")
    assert said == {
        ("gpu_memory_used_bytes", "cuda:0"): 1,
        ("gpu_memory_total_bytes", "cuda:0"): 2,
        ("gpu_utilization_ratio", "cuda:0"): 0.5,
        ("gpu_power_watts", "cuda:0"): 70.0,
        ("gpu_energy_joules_total", "cuda:0"): 1e6,
        ("gpu_memory_used_bytes", "cuda:1"): 3,
        ("gpu_memory_total_bytes", "cuda:1"): 4,
    }


def test_without_a_gpu_there_are_no_gpu_metrics() -> None:
    """No GPU is queried."""

    def read_gpu(_: str) -> GpuStats | None:
        raise AssertionError

    assert _collect(read_gpu, "cpu") == {}
