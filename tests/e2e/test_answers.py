"""Answers equal `transformers.pipeline("image-classification")` on the same checkpoint."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import pipeline

from tests.support.samples import encode, image_files, make_checkpoint, photos, sharpen
from tests.support.server import TRANSFORMERS, RunningServer, serve
from vit_api.checkpoints.checkpoint import EMBEDDED

DIGITS = EMBEDDED["digits"]
_MAX_DIFFERENCE = 0.02
_CLEAR_GAP = 0.01
Held = list[tuple[bytes, str]]
_KINDS = ["vit", "deit", "beit", "swin", "dinov2"]


def _uploads() -> dict[str, bytes]:
    return {name: encode(image, "JPEG", quality=90) for name, image in photos().items()} | image_files()


def _assert_agree(ours: list[tuple[str, float]], reference: list[dict[str, Any]], name: str) -> None:
    """Check that two answers agree: the same labels, close probabilities, and no clear difference in rank."""
    theirs = {item["label"]: item["score"] for item in reference}
    assert dict(ours).keys() == theirs.keys()
    for label, probability in ours:
        assert probability == pytest.approx(theirs[label], abs=_MAX_DIFFERENCE), name
    for rank, (label, _) in enumerate(ours):
        for later, _ in ours[rank + 1 :]:
            assert theirs[later] - theirs[label] <= _CLEAR_GAP, f"{name}: {later} before {label}"


def _compare_all(server: RunningServer, folder: Path, uploads: dict[str, bytes]) -> None:
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    winners = set()
    for name, upload in uploads.items():
        with Image.open(io.BytesIO(upload)) as image:
            reference = classify(image, top_k=10)
        _assert_agree(server.top(upload, 10), reference, name)
        winners.add(reference[0]["label"])
    assert len(winners) > 1, "the uploads differ for the model"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", _KINDS)
def test_answers_equal_the_pipeline(kind: str, tmp_path: Path) -> None:
    """Photos and unusual formats agree, with each architecture's real processor settings."""
    folder = sharpen(make_checkpoint(tmp_path / kind, kind))
    with serve(folder, imports=TRANSFORMERS, exact_decode=True, dtype="float32", api_servers=1) as server:
        _compare_all(server, folder, _uploads())


@pytest.mark.filterwarnings("ignore")
def test_large_photos_of_digits_equal_the_pipeline(digits_server: RunningServer, held_out: Held) -> None:
    """JPEGs that are scaled while they are decoded agree with the default settings."""
    uploads = {}
    for number, (upload, _) in enumerate(held_out[:20]):
        with Image.open(io.BytesIO(upload)) as scan:
            large = scan.convert("RGB").resize((1200, 1000), Image.Resampling.BICUBIC)
        uploads[f"large digit {number}"] = encode(large, "JPEG", quality=90)
    _compare_all(digits_server, DIGITS, uploads)


@pytest.mark.filterwarnings("ignore")
def test_digits_equal_the_pipeline(digits_server: RunningServer, held_out: Held) -> None:
    """The embedded model agrees with the default dtype and decoding."""
    uploads = {f"digit {number}": upload for number, (upload, _) in enumerate(held_out[:40])}
    _compare_all(digits_server, DIGITS, uploads)
