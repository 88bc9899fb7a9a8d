"""An int8 copy of the embedded model, made by the real OpenVINO and NNCF."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.decoding.images import decode
from vit_api.quantization.gate import MIN_IMAGES
from vit_api.quantization.quantizer import Quantizer

CALIBRATION = 32
"""Scans that calibrate; the others are judged."""


def digit_pngs() -> list[bytes]:
    """Return all scans as PNGs."""
    from sklearn.datasets import load_digits  # not at the top: with the next, it takes seconds

    from scripts.train_digits import scan_to_image

    found = []
    for scan in load_digits().images:
        file = io.BytesIO()
        scan_to_image(scan).save(file, "PNG")
        found.append(file.getvalue())
    return found


def digit_pixels() -> list[NDArray[np.uint8]]:
    """Return all scans as the model takes them."""
    preprocessing = load_checkpoint("digits").preprocessing
    return [decode(png, preprocessing, exact=False) for png in digit_pngs()]


def quantize_digits(out: Path, *, judged: int | None = None, model: str = "digits") -> list[str]:
    """Write the int8 copy and its verdict; return why it fails the gate.

    Args:
        out: The folder to write.
        judged: Number of images that are judged; None for all but those that calibrate.
        model: A variant of the embedded model.
    """
    checkpoint = load_checkpoint(model)
    pixels = [decode(png, checkpoint.preprocessing, exact=False) for png in digit_pngs()]

    def others() -> Iterator[NDArray[np.uint8]]:
        return iter(pixels[CALIBRATION:][:judged])

    return Quantizer(checkpoint, pixels[:CALIBRATION], others, MIN_IMAGES).run(out).failures
