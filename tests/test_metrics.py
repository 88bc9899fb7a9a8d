"""The counts in shared memory, without a server."""

from __future__ import annotations

import multiprocessing as mp
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from vit_api import metrics
from vit_api.errors import ViTError
from vit_api.metrics import Kind, Metric
from vit_api.metrics_board import MetricsBoard

_COUNTER = Metric("sheep_total", Kind.COUNTER, "Sheep", ("colour", "size"), (("black", "white"), ("1", "2")))
_HISTOGRAM = Metric("wait_seconds", Kind.HISTOGRAM, "Waits", ("who",), (("a", "b"),), (0.5, 1.0, 2.0))


@pytest.fixture
def board() -> MetricsBoard:
    return MetricsBoard(["one", "two"], [_COUNTER, _HISTOGRAM])


def test_series_add_up_over_processes(board: MetricsBoard) -> None:
    """Each process has its own column, each series its own place."""
    for process, times in (("one", 3), ("two", 4)):
        meter = board.meter(process)
        for number, values in enumerate(_COUNTER.series):
            for _ in range(times):
                meter.count(_COUNTER, *values).add(number)
    assert board.totals(_COUNTER) == {values: [7.0 * number] for number, values in enumerate(_COUNTER.series)}


@given(st.lists(st.floats(0, 10)))
def test_a_histogram_counts_as_prometheus_does(waits: list[float]) -> None:
    """Into the same buckets as prometheus_client's own: a value that is a bucket's end belongs to it."""
    board = MetricsBoard(["one"], [_HISTOGRAM])
    theirs = Histogram("wait_seconds", "", buckets=_HISTOGRAM.buckets, registry=CollectorRegistry())
    ours = board.meter("one").distribution(_HISTOGRAM, "b")
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
    board.meter("two").count(_COUNTER, "black", "1").add()


def test_a_successor_goes_on_with_the_column(board: MetricsBoard) -> None:
    """Spawned as workers are; what the dead one counted stays."""
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
    """Prometheus' own; a label of a counted metric has known values, so that nobody can make up new series."""
    assert len({metric.name for metric in metrics.ALL}) == len(metrics.ALL)
    for metric in metrics.ALL:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert len(metric.values) == (len(metric.labels) if metric in metrics.COUNTED else 0)


def test_every_failure_has_a_place() -> None:
    """A failure that is added later can be counted, without anybody thinking of it."""
    assert {ViTError.code, "overloaded", "bad_image"} <= set(metrics.REASONS)
    assert {"200", "499", "500", "503", "504"} <= set(metrics.STATUSES)
