"""What the model says, counted for each answered image."""

from __future__ import annotations

import pytest

from tests.support.exchanges import checkpoint_of, exchange_of, miss, scores_of
from vit_api import metrics
from vit_api.errors import BadRequest
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.labels.thresholds import Thresholds
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source
from vit_api.web.observers.prediction_metrics import FlaggedLabels, PredictionMetrics


def _board(labels: tuple[str, ...], *, has_thresholds: bool = False) -> MetricsBoard:
    return MetricsBoard(["http-0"], metrics.counted_for(labels, has_thresholds=has_thresholds))


def _counts(board: MetricsBoard, metric: metrics.Metric) -> dict[str, float]:
    return {label: number for (label,), (number,) in board.totals(metric).items() if number}


def test_hits_and_misses_count_and_failures_do_not() -> None:
    """Each answered image counts once, by its most probable class."""
    board = _board(("cat", "dog"))
    observer = PredictionMetrics(board.metrics_writer("http-0"), checkpoint_of("cat", "dog"))
    computed = miss(scores_of(0.2, 0.8))
    hit = ClassifierResult(CachedPrediction(scores_of(0.9, 0.1)), Source.HIT)
    observer.observe(exchange_of(computed, hit, hit, BadRequest("no image")))
    observer.observe(exchange_of(BadRequest("no image")))
    assert _counts(board, metrics.PREDICTIONS) == {"dog": 1, "cat": 2}
    *counts, total = board.totals(metrics.TOP_CONFIDENCE)[()]
    assert sum(counts) == 3
    assert total == pytest.approx(2.6)


def test_a_sigmoid_model_counts_its_own_probability() -> None:
    """The confidence of a multi-label model is the sigmoid of its logit, and each flagged label counts."""
    checkpoint = checkpoint_of("a", "b", "c", has_sigmoid=True)
    thresholds = Thresholds({"a": 0.9, "*": 0.5})
    board = _board(checkpoint.labels, has_thresholds=True)
    flagged = FlaggedLabels(checkpoint, thresholds)
    observer = PredictionMetrics(board.metrics_writer("http-0"), checkpoint, flagged)
    result = miss(scores_of(0.8, 0.7, 0.4, sigmoid=True))
    observer.observe(exchange_of(result, result))
    assert _counts(board, metrics.PREDICTIONS) == {"a": 2}
    assert _counts(board, metrics.FLAGGED) == {"b": 2}
    assert board.totals(metrics.TOP_CONFIDENCE)[()][-1] == pytest.approx(1.6)


def test_the_first_hundred_labels_have_series() -> None:
    """All other classes share one, and so do classes of one name, which ImageNet has."""
    labels = ("crane", "crane", *(f"label {number}" for number in range(998)))
    board = _board(labels)
    observer = PredictionMetrics(board.metrics_writer("http-0"), checkpoint_of(*labels))
    for index in (0, 1, 99, 100, 999):
        ranked = [0.0] * 1000
        ranked[index] = 1.0
        observer.observe(exchange_of(miss(scores_of(*ranked))))
    assert _counts(board, metrics.PREDICTIONS) == {"crane": 2, "label 97": 1, "other": 2}
    assert len(board.totals(metrics.PREDICTIONS)) == metrics.MAX_CLASS_LABELS - 1 + 1


def test_flags_follow_the_rounding_of_responses() -> None:
    """A score that is rounded up to its threshold is flagged, as in responses."""
    checkpoint = checkpoint_of("a", "b", has_sigmoid=True)
    flagged = FlaggedLabels(checkpoint, Thresholds({"a": 0.5}))
    result = miss(scores_of(0.4999996, 0.2, sigmoid=True))
    assert flagged.find(result.cached, 0.4999996) == (0,) == result.cached.flagged
    assert flagged.find(miss(scores_of(0.4, 0.2, sigmoid=True)).cached, 0.4) == ()
