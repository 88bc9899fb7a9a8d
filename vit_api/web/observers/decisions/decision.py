"""One decision: what the log says about an answered image.

It has no pixels, addresses or keys: the SHA-256 of the upload suffices to find the image that it is about.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.decoding.uploads import Pixels, Upload
from vit_api.ipc.records import Prediction
from vit_api.labels.thresholds import SCORE_DIGITS, Thresholds
from vit_api.web.core.classifier_result import ClassifierResult, Source

MAX_LABELS = 20
"""Number of the most probable labels in a decision; flagged ones beyond them are in it, too."""

_EVENT_TYPE = "vit-api.decision.v1"
_SHADOW_EVENT_TYPE = "vit-api.shadow.v1"
_NOT_CACHED = "none"

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


class Mirrored(NamedTuple):
    """What a mirror's answer is compared with.

    Attributes:
        version: The version of the model that answered the client.
        label: The most probable class of that answer.
        score: Its probability.
        agrees: Whether it is the mirror's, too.
        difference: Between its probabilities by the two.
    """

    version: str
    label: str
    score: float
    agrees: bool
    difference: float


class Answered(NamedTuple):
    """The answered images of one request, until they are rendered.

    Attributes:
        time_s: When they were answered, in seconds since the Unix epoch.
        request_id: The id of the request.
        results: The result of each image.
        size_bytes: Memory that its uploads take.
        deployment: The place of the deployment that answered.
        mirrored: What it is compared with if it answered as a mirror; else None.
    """

    time_s: float
    request_id: str
    results: Sequence[ClassifierResult]
    size_bytes: int
    deployment: int = 0
    mirrored: Mirrored | None = None


@dataclass(frozen=True)
class DecisionContext:
    """What all decisions of a deployment have in common.

    Attributes:
        checkpoint: The served model.
        version: Its commit, or a digest of its files.
        thresholds: From which scores on labels are flagged; None if none are.
        model_version: What clients call this version of the model; None if the server has one model only.
    """

    checkpoint: Checkpoint
    version: str
    thresholds: Thresholds | None
    model_version: str | None = None


class DecisionRenderer:
    """Render decisions as JSON. Hashes the uploads, so it is for a thread.

    Args:
        context: What all decisions have in common.
    """

    def __init__(self, context: DecisionContext) -> None:
        self._labels = context.checkpoint.labels
        self._has_sigmoid = context.checkpoint.has_sigmoid
        self._thresholds = context.thresholds
        self._model = {"model": context.checkpoint.name, "version": context.version}
        if context.model_version is not None:
            self._model["model_version"] = context.model_version
        self._digest = None if context.thresholds is None else context.thresholds.digest

    def lines(self, answered: Answered) -> Iterator[bytes]:
        """Yield a line of JSON for each image, without line breaks in it."""
        for decision in self._decisions(answered):
            yield _encode(decision).encode("ascii")

    def events(self, answered: Answered) -> Iterator[bytes]:
        """Yield a CloudEvents 1.0 event in JSON for each image; a repeated one keeps its id."""
        source = uuid.uuid5(uuid.NAMESPACE_OID, self._model["model"]).urn
        for decision in self._decisions(answered):
            event = {
                "specversion": "1.0",
                "id": str(uuid.uuid4()),
                "source": source,
                "type": _EVENT_TYPE if answered.mirrored is None else _SHADOW_EVENT_TYPE,
                "time": decision["time"],
                "datacontenttype": "application/json",
                "data": decision,
            }
            yield _encode(event).encode("ascii")

    def _decisions(self, answered: Answered) -> Iterator[dict[str, Any]]:
        moment = datetime.fromtimestamp(answered.time_s, UTC).isoformat(timespec="milliseconds")
        start: dict[str, Any] = {"time": moment.replace("+00:00", "Z"), "request_id": answered.request_id}
        hashed: tuple[Upload | None, str | None] = (None, None)
        for result in answered.results:
            if result.upload is not hashed[0]:  # all frames of an upload follow each other
                hashed = (result.upload, _sha256(result.upload))
            decision: dict[str, Any] = start | {"upload_sha256": hashed[1]}
            if result.frame is not None:
                decision["frame"] = result.frame
            decision |= self._model | self._verdict(result.prediction) | {"cache": cache_of(result)}
            if answered.mirrored is not None:
                decision["shadow"] = _compared(answered.mirrored)
            yield decision

    def _verdict(self, prediction: Prediction) -> dict[str, Any]:
        """Return labels and scores, as in responses, and what is flagged; null if there are no thresholds."""
        thresholds, labels = self._thresholds, self._labels
        shown: list[dict[str, Any]] = []
        is_flagged = False
        scores = prediction.scores(sigmoid=self._has_sigmoid)
        for rank, (index, score) in enumerate(zip(prediction.indices, scores, strict=True)):
            one: dict[str, Any] = {"label": labels[index], "score": round(score, SCORE_DIGITS)}
            flags = thresholds is not None and thresholds.flags(labels[index], score)
            if thresholds is not None:
                one["flagged"] = flags
                is_flagged = is_flagged or flags
            if rank < MAX_LABELS or flags:
                shown.append(one)
        return {
            "predictions": shown,
            "thresholds": self._digest,
            "flagged": None if thresholds is None else is_flagged,
        }


def _compared(mirrored: Mirrored) -> dict[str, Any]:
    return {
        "answered_by": mirrored.version,
        "label": mirrored.label,
        "score": round(mirrored.score, SCORE_DIGITS),
        "outcome": "agree" if mirrored.agrees else "differ",
        "difference": round(mirrored.difference, SCORE_DIGITS),
    }


def cache_of(result: ClassifierResult) -> str:
    """Return where a result comes from: none, local, shared, redis or coalesced."""
    if result.source is Source.HIT:
        return result.tier.value
    return _NOT_CACHED if result.source is Source.MISS else result.source.value


def size_of(upload: Upload | None) -> int:
    """Return the size of an upload, in bytes."""
    if upload is None:
        return 0
    return len(upload.data if isinstance(upload, Pixels) else upload)


def _sha256(upload: Upload | None) -> str | None:
    if upload is None:
        return None
    return hashlib.sha256(upload.data if isinstance(upload, Pixels) else upload).hexdigest()
