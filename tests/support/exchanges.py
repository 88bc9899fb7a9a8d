"""Makes requests with their outcomes, as observers get them."""

from __future__ import annotations

import math
from pathlib import Path

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding.uploads import Upload
from vit_api.errors import ViTError
from vit_api.ipc.records import MAX_TOP_K, AnswerRecord, Prediction, Status
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source
from vit_api.web.observers.exchange import Exchange
from vit_api.web.requests import Request

_PREPROCESSING = Preprocessing(
    size=(8, 8), shortest_edge=None, crop=None, resample=2, scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3
)
_TINY = 1e-9


def checkpoint_of(*labels: str, has_sigmoid: bool = False) -> Checkpoint:
    """Return a checkpoint with these labels and no files."""
    return Checkpoint("a-model", Path("/none"), None, labels, _PREPROCESSING, has_sigmoid)


def scores_of(*scores: float, sigmoid: bool = False) -> Prediction:
    """Return a prediction with these probabilities by class."""
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])[:MAX_TOP_K]
    chances = [min(max(scores[index], _TINY), 1 - _TINY) for index in ranked]
    logits = [math.log(p / (1 - p)) if sigmoid else math.log(p) for p in chances]
    return Prediction(tuple(ranked), tuple(logits), chances[0])


def miss(prediction: Prediction, upload: Upload | None = None) -> ClassifierResult:
    """Return the result of an upload that the model ran for."""
    answer = AnswerRecord(0, 0, Status.OK, prediction)
    return ClassifierResult(CachedPrediction(prediction), Source.MISS, answer, upload=upload)


def exchange_of(*outcomes: ClassifierResult | ViTError, request_id: bytes = b"an-id") -> Exchange:
    """Return an answered request with these outcomes."""
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    request = Request(scope, request_id, arrived_at=0.0, timeout_s=30.0, endpoint="/predict")
    return Exchange(request, 200, 0.1, outcomes)
