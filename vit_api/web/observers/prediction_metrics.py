"""Counts what the model says: the most probable class of each answered image, its confidence, and flagged labels.

An image from a cache counts as well, since its client gets the same answer.
"""

from __future__ import annotations

import itertools

from vit_api import metrics
from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.ipc.metrics_board import Counter, MetricsWriter
from vit_api.ipc.records import top_of
from vit_api.labels.thresholds import SCORE_DIGITS, Thresholds
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult
from vit_api.web.observers.exchange import Exchange
from vit_api.web.repeats import CountHits
from vit_api.web.requests import Request


class FlaggedLabels:
    """Finds the classes at or above their thresholds, once for each cached prediction.

    Args:
        checkpoint: The served model.
        thresholds: From which scores on its labels are flagged.
    """

    def __init__(self, checkpoint: Checkpoint, thresholds: Thresholds) -> None:
        self._labels = checkpoint.labels
        self._has_sigmoid = checkpoint.has_sigmoid
        self._thresholds = thresholds
        self._below = thresholds.lowest - 10**-SCORE_DIGITS  # no score below is flagged, however it is rounded

    def find(self, cached: CachedPrediction, top_score: float) -> tuple[int, ...]:
        """Return the indices of the flagged classes of a prediction, and keep them with it.

        Args:
            cached: The prediction.
            top_score: The score of its most probable class.
        """
        flagged: tuple[int, ...] = ()
        if top_score >= self._below:
            prediction = cached.prediction
            scores = prediction.scores(sigmoid=self._has_sigmoid)
            flags, labels, below = self._thresholds.flags, self._labels, self._below
            likely = itertools.takewhile(lambda one: one[1] >= below, zip(prediction.indices, scores, strict=True))
            flagged = tuple([index for index, score in likely if flags(labels[index], score)])
        cached.flagged = flagged
        return flagged


class PredictionMetrics:
    """Count the result of each image after its response.

    Args:
        metrics_writer: Creates the counters of this process.
        checkpoint: The served model.
        flagged: Finds the flagged classes; None if there are no thresholds.
    """

    def __init__(
        self, metrics_writer: MetricsWriter, checkpoint: Checkpoint, flagged: FlaggedLabels | None = None
    ) -> None:
        labels = metrics.class_labels(checkpoint.labels)
        self._has_sigmoid = checkpoint.has_sigmoid
        self._predictions = _by_class(metrics_writer, metrics.PREDICTIONS, labels)
        self._confidence = metrics_writer.histogram(metrics.TOP_CONFIDENCE)
        self._flagged = flagged
        self._flags = [] if flagged is None else _by_class(metrics_writer, metrics.FLAGGED, labels)

    def observe(self, exchange: Exchange) -> None:
        """Count the results of a request; failed images have none."""
        if exchange.request.endpoint == metrics.EMBEDDINGS:  # its answers have no labels
            return
        for outcome in exchange.outcomes:
            if isinstance(outcome, ClassifierResult):
                self._count(outcome.cached)

    def hit_counter(self, _: Request) -> CountHits:
        """Return what counts cache hits."""
        count = self._count
        return lambda cached, _, __, hits: count(cached, hits)

    def _count(self, cached: CachedPrediction, times: int = 1) -> None:
        index, confidence = top_of(cached.packed, sigmoid=self._has_sigmoid)
        self._predictions[index].add(times)
        self._confidence.observe_several(confidence, times)
        if self._flagged is not None:
            flagged = cached.flagged
            for one in self._flagged.find(cached, confidence) if flagged is None else flagged:
                self._flags[one].add(times)


def _by_class(metrics_writer: MetricsWriter, metric: metrics.Metric, labels: tuple[str, ...]) -> list[Counter]:
    """Return the counter of each class; classes with one label share it."""
    counters = {label: metrics_writer.counter(metric, label) for label in dict.fromkeys(labels)}
    return [counters[label] for label in labels]
