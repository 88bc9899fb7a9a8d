"""Responses of the LitAPI: which classes they show, and what is flagged."""

from __future__ import annotations

import itertools
import math

import pytest

from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.ipc.records import Prediction
from vit_api.labels.thresholds import Thresholds
from vit_api.lit_api import ViTAPI

_SCORES = (0.6, 0.2, 0.1, 0.0500004, 0.0299996, 0.02)
_PREDICTION = Prediction(
    indices=(7, 3, 1, 9, 0, 2), logits=tuple(math.log(score) for score in _SCORES), top_probability=_SCORES[0]
)


@pytest.mark.parametrize(
    "by_label",
    [
        pytest.param({"*": 0.5}, id="the first"),
        pytest.param({"*": 0.7}, id="none"),
        pytest.param({"9": 0.05}, id="one, as rounded"),
        pytest.param({"0": 0.03}, id="one, rounded up"),
        pytest.param({"0": 0.030001}, id="just below"),
        pytest.param({"2": 0.01, "*": 0.9}, id="the last"),
        pytest.param({"5": 0.0}, id="one that is not in it"),
    ],
)
def test_flags_do_not_depend_on_what_is_shown(by_label: dict[str, float]) -> None:
    """The response is flagged if any class is, whichever classes `top_k` and `threshold` leave."""
    checkpoint, thresholds = load_checkpoint("digits"), Thresholds(by_label)
    lit_api = ViTAPI(checkpoint, thresholds=thresholds, max_batch_size=2)
    scores = [round(score, 6) for score in _SCORES]
    flags = [score >= thresholds.of(str(index)) for index, score in zip(_PREDICTION.indices, scores, strict=True)]
    for top_k, threshold in itertools.product((1, 2, 5, 6, 20, None), (0.0, 0.05, 0.99)):
        response = lit_api.encode_response(_PREDICTION, top_k=top_k, threshold=threshold)
        assert response["flagged"] is any(flags)
        assert response["thresholds_digest"] == thresholds.digest
        shown = [score for score in scores[:top_k] if score >= threshold]
        assert [one["confidence"] for one in response["predictions"]] == shown
        assert [one["flagged"] for one in response["predictions"]] == flags[: len(shown)]
