"""Each family of classifiers that is served gives the answers of `transformers.pipeline`, alone and in batches."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from tests.support.classifiers import CLASSES, FAMILIES, make_classifier
from tests.support.samples import encode, photos
from vit_api.checkpoints.checkpoint import Checkpoint, load_checkpoint
from vit_api.decoding.images import decode
from vit_api.model.model import VisionModel

_MAX_DIFFERENCE = 0.02
_CROPS = {"china": (0, 0, 301, 427), "coffee": (11, 5, 500, 120), "flower": (100, 100, 323, 323)}


def _uploads() -> list[bytes]:
    """Photos of even and odd sides, wide, tall and small."""
    return [
        *(encode(photos()[name]) for name in ("astronaut", "chelsea", "rocket")),
        *(encode(photos()[name].crop(box)) for name, box in _CROPS.items()),
    ]


def _compare(folder: Path) -> np.ndarray:
    """Compare the answers, isolated and in a batch; return the pipeline's, [images, classes]."""
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    checkpoint = load_checkpoint(str(folder))
    model = VisionModel(checkpoint, "cpu", "float32", cpu_threads=1, max_batch_size=8)
    model.prepare("eager", sizes=(1,))
    uploads = _uploads()
    expected = np.zeros((len(uploads), len(checkpoint.labels)))
    for row, upload in zip(expected, uploads, strict=True):
        with Image.open(io.BytesIO(upload)) as image:
            for item in classify(image, top_k=CLASSES):
                row[checkpoint.labels.index(item["label"])] = item["score"]
    pixels = [decode(upload, checkpoint.preprocessing, exact=True) for upload in uploads]
    isolated = np.concatenate([_scores(model, [image], checkpoint) for image in pixels])
    np.testing.assert_allclose(isolated, expected, atol=_MAX_DIFFERENCE)
    np.testing.assert_allclose(_scores(model, pixels, checkpoint), expected, atol=_MAX_DIFFERENCE)
    assert np.ptp(expected, axis=0).max() > 0.2, "the photos differ for the model"
    return expected


def _scores(model: VisionModel, pixels: list[np.ndarray], checkpoint: Checkpoint) -> np.ndarray:
    """Return [images, classes]."""
    rows = np.zeros((len(pixels), len(checkpoint.labels)))
    for row, prediction in zip(rows, model.collect(model.launch(model.stage(pixels))), strict=True):
        row[list(prediction.indices)] = prediction.scores(sigmoid=checkpoint.has_sigmoid)
    return rows


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_the_pipeline(family: str, tmp_path: Path) -> None:
    """With the processor settings of a published checkpoint."""
    _compare(make_classifier(tmp_path / family, family))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_multi_label_answers_equal_the_pipeline(family: str, tmp_path: Path) -> None:
    """Each label has a probability of its own."""
    folder = make_classifier(tmp_path / family, family, problem_type="multi_label_classification")
    assert (_compare(folder).sum(axis=1) > 1.5).any(), "more than a softmax would give"


@pytest.mark.filterwarnings("ignore")
def test_the_answer_of_one_logit_equals_the_pipeline(tmp_path: Path) -> None:
    """A model with a single class says how probable it is."""
    assert _compare(make_classifier(tmp_path / "vit", "vit", classes=1)).shape == (6, 1)
