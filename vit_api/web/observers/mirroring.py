"""Shadow traffic: sends what was answered to the mirror, and counts and logs how its answers compare.

Knows nothing of slots and workers.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import NamedTuple

from vit_api import metrics
from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.decoding.uploads import Upload
from vit_api.errors import DeadlineExceeded
from vit_api.ipc.metrics_board import MetricsWriter
from vit_api.ipc.records import AnswerRecord, Prediction, top_of
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source
from vit_api.web.core.mirror import Mirror
from vit_api.web.observers.decisions.decision import Mirrored, size_of
from vit_api.web.observers.decisions.log import DecisionLog
from vit_api.web.observers.exchange import Exchange

MAX_UPLOAD_BYTES = 16 * 2**20
"""Size of the uploads that are kept until the mirror has answered, since the decision log names them by their hash."""


class Side(NamedTuple):
    """One of the two versions that are compared.

    Attributes:
        number: The place of its deployment.
        version: Its version.
        checkpoint: Its model.
    """

    number: int
    version: str
    checkpoint: Checkpoint


class _Answer(NamedTuple):
    """The answer that a client got, as far as it is compared.

    Attributes:
        side: What gave it.
        request_id: The id of the request.
        label: The most probable class.
        score: Its probability.
        upload: What was classified; None if no log needs it.
        frame: The index of the frame in the upload.
    """

    side: Side
    request_id: str
    label: str
    score: float
    upload: Upload | None
    frame: int | None


class ShadowCounts:
    """The metrics of one mirror in one process.

    Args:
        metrics_writer: Creates its counters.
    """

    def __init__(self, metrics_writer: MetricsWriter) -> None:
        self._outcomes = {
            outcome: metrics_writer.counter(metrics.SHADOW, outcome) for (outcome,) in metrics.SHADOW.series
        }
        self._differences = metrics_writer.histogram(metrics.SHADOW_DIFFERENCE)

    def skip(self) -> None:
        """Count an image that the mirror did not compute."""
        self._outcomes["skipped"].add()

    def fail(self) -> None:
        """Count an image on which it failed."""
        self._outcomes["failed"].add()

    def compare(self, mirrored: Mirrored) -> None:
        """Count an image that it did compute."""
        self._outcomes["agree" if mirrored.agrees else "differ"].add()
        self._differences.observe(mirrored.difference)


class Mirroring:
    """Send the images of one version of a model to its mirror after each response. An observer.

    Args:
        mirror: Computes them again.
        answering: The version that answers.
        mirroring: The version that is the mirror.
        counts: Count the outcomes.
        decisions: Log them; None if there is no log.
    """

    def __init__(
        self, mirror: Mirror, answering: Side, mirroring: Side, counts: ShadowCounts, decisions: DecisionLog | None
    ) -> None:
        self._mirror = mirror
        self._answering = answering
        self._mirroring = mirroring
        self._counts = counts
        self._decisions = decisions
        self._upload_bytes = 0
        self._due: list[tuple[ClassifierResult, str]] = []

    def observe(self, exchange: Exchange) -> None:
        """Send the images that were computed for a request: not now, since its response is only in a buffer yet."""
        if not self._mirror.has_kept:
            return
        request_id = exchange.request.id.decode()
        due = [
            (outcome, request_id)
            for outcome in exchange.outcomes
            if isinstance(outcome, ClassifierResult) and outcome.answer is not None
        ]
        if not due:
            return
        if not self._due:
            asyncio.get_running_loop().call_soon(self._send_all)
        self._due += due

    def _send_all(self) -> None:
        due, self._due = self._due, []
        for result, request_id in due:
            self._send(result, request_id)

    def _send(self, result: ClassifierResult, request_id: str) -> None:
        assert result.answer is not None
        upload = None if self._decisions is None else result.upload
        size = size_of(upload)
        if self._upload_bytes and self._upload_bytes + size > MAX_UPLOAD_BYTES:
            self._mirror.drop(result.answer)
            return
        answered = self._mirror.send(result.answer)
        if answered is None:
            return
        self._upload_bytes += size
        checkpoint = self._answering.checkpoint
        index, score = top_of(result.cached.packed, sigmoid=checkpoint.has_sigmoid)
        answer = _Answer(self._answering, request_id, checkpoint.labels[index], score, upload, result.frame)
        answered.add_done_callback(functools.partial(self._accept, answer))

    def _accept(self, answer: _Answer, answered: asyncio.Future[AnswerRecord]) -> None:
        """Count and log what the mirror has answered."""
        self._upload_bytes -= size_of(answer.upload)
        if answered.cancelled():
            return
        error = answered.exception()
        if isinstance(error, DeadlineExceeded):
            self._counts.skip()
        elif error is not None:
            self._counts.fail()
        else:
            record = answered.result()
            mirrored = compare(answer.label, answer.score, answer.side.version, record.prediction, self._mirroring)
            self._counts.compare(mirrored)
            if self._decisions is not None:
                cached = CachedPrediction(record.prediction)
                result = ClassifierResult(cached, Source.MISS, record, upload=answer.upload, frame=answer.frame)
                self._decisions.log_mirrored(answer.request_id, result, self._mirroring.number, mirrored)


class ByMirrored:
    """An observer for each deployment that has a mirror.

    Args:
        observers: Those, by the place of the deployment.
    """

    def __init__(self, observers: Mapping[int, Mirroring]) -> None:
        self._observers = observers

    def observe(self, exchange: Exchange) -> None:
        """Give the exchange to the observer of the deployment that answered, if it has one."""
        chosen = exchange.request.deployment
        observer = None if chosen is None else self._observers.get(chosen.place)
        if observer is not None:
            observer.observe(exchange)


def compare(label: str, score: float, version: str, prediction: Prediction, mirroring: Side) -> Mirrored:
    """Compare a mirror's prediction with an answer.

    Args:
        label: The most probable class of the answer; classes are compared by name, since versions may number them
            differently.
        score: Its probability.
        version: The version that answered.
        prediction: The mirror's; a class that it does not have, for which the probability counts as 0, is not among its
            `records.MAX_TOP_K` most probable ones.
        mirroring: The mirror.
    """
    labels = [mirroring.checkpoint.labels[index] for index in prediction.indices]
    scores = prediction.scores(sigmoid=mirroring.checkpoint.has_sigmoid)
    other = scores[labels.index(label)] if label in labels else 0.0
    return Mirrored(version, label, score, agrees=labels[0] == label, difference=abs(score - other))
