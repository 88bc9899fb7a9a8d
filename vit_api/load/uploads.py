"""What a load test sends: generated photos, made unique in each request, as raw bodies or forms."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

PHOTO_SIZE = (500, 375)
BOUNDARY = "----benchmark-5f1d"
FREE_BOX = b"\0\0\0\x18free"
"""The start of what makes an upload unique: a box of 24 bytes after its end, which image decoders ignore."""
RAW = "application/octet-stream"
FORM = f"multipart/form-data; boundary={BOUNDARY}"

_GRAIN = 5
"""Pixels between random colours, which are blended."""
_MAX_FILES = 1000


def as_form(upload: bytes) -> bytes:
    """Return a form with the upload in the field `file`, as browsers send it."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: image/png\r\n\r\n'
    )
    return head.encode() + upload + f"\r\n--{BOUNDARY}--\r\n".encode()


def photos(count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield `count` different 500 x 375 JPEGs of about 65 KB."""
    for number in range(count):
        yield as_jpeg(soft_noise(PHOTO_SIZE, seed=seed + number), 88)


def files_in(folder: Path) -> Iterator[bytes]:
    """Yield the contents of a folder's files, at any depth, at most a thousand."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file())[:_MAX_FILES]:
        yield path.read_bytes()


def soft_noise(size: tuple[int, int], seed: int, grain: int = _GRAIN) -> Image.Image:
    """Return an image of random colours, one every `grain` pixels, and blends between them."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 256, (height // grain, width // grain, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def as_jpeg(picture: Image.Image, quality: int) -> bytes:
    """Return an image as a JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()
