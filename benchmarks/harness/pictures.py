"""Generates the images that benchmarks send, from seeds, so that they are the same everywhere."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from vit_api.load.uploads import PHOTO_SIZE, as_jpeg, soft_noise

CAMERA_SIZE = (4032, 3024)


def small_png(side: int = 28) -> bytes:
    """Return a square PNG, of about 700 bytes for a side of 28: a soft grey blot."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 5), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def noisy_jpeg(size: int) -> bytes:
    """Return a 500 x 375 JPEG of soft noise, at the quality that comes closest to `size` bytes."""
    picture = soft_noise(PHOTO_SIZE, seed=0)
    candidates = [as_jpeg(picture, quality) for quality in range(30, 100)]
    return min(candidates, key=lambda content: abs(len(content) - size))


def camera_jpeg(grain: int = 12) -> bytes:
    """Return a 4032 x 3024 JPEG like a phone camera's: 2.4 MB of fine detail, or less with a coarser grain."""
    return as_jpeg(soft_noise(CAMERA_SIZE, seed=0, grain=grain), 85)
