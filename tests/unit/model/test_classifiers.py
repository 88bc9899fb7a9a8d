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
from vit_api.checkpoints.checkpoint import load_checkpoint
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


def _scores(model: VisionModel, pixels: list[np.ndarray]) -> np.ndarray:
    """Return [images, classes]."""
    rows = np.zeros((len(pixels), CLASSES))
    for row, prediction in zip(rows, model.collect(model.launch(model.stage(pixels))), strict=True):
        row[list(prediction.indices)] = prediction.probabilities
    return rows


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_the_pipeline(family: str, tmp_path: Path) -> None:
    """With the processor settings of a published checkpoint."""
    folder = make_classifier(tmp_path / family, family)
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    checkpoint = load_checkpoint(str(folder))
    model = VisionModel(checkpoint, "cpu", "float32", cpu_threads=1, max_batch_size=8)
    model.prepare("eager", sizes=(1,))
    uploads = _uploads()
    expected = np.zeros((len(uploads), CLASSES))
    for row, upload in zip(expected, uploads, strict=True):
        with Image.open(io.BytesIO(upload)) as image:
            for item in classify(image, top_k=CLASSES):
                row[checkpoint.labels.index(item["label"])] = item["score"]
    assert np.ptp(expected, axis=0).max() > 0.2, "the photos differ for the model"
    pixels = [decode(upload, checkpoint.preprocessing, exact=True) for upload in uploads]
    isolated = np.concatenate([_scores(model, [image]) for image in pixels])
    np.testing.assert_allclose(isolated, expected, atol=_MAX_DIFFERENCE)
    np.testing.assert_allclose(_scores(model, pixels), expected, atol=_MAX_DIFFERENCE)
