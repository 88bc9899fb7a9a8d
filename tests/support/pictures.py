"""One photo in many formats, and a check that a decoded file shows it."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import Image

from tests.support import samples
from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding.images import decode

SQUARE = Preprocessing((48, 48), None, None, 2, 1 / 255, (0.5,) * 3, (0.5,) * 3)

# The mean difference that compression and palettes cause is below this; a black, inverted or shifted image has 40.
CLOSE = 6.0


@functools.cache
def expected(mode: str = "RGB") -> npt.NDArray[np.int64]:
    return np.asarray(samples.photo().convert(mode).resize((48, 48), 2).convert("RGB")).astype(int)


def pixels(upload: bytes, **options: Any) -> npt.NDArray[np.int64]:
    return decode(upload, SQUARE, **{"exact": False, **options}).astype(int)


def assert_seen(upload: bytes, mode: str = "RGB") -> None:
    assert np.abs(pixels(upload) - expected(mode)).mean() < CLOSE


def rgb() -> npt.NDArray[np.uint8]:
    return np.asarray(samples.photo())


def grey() -> npt.NDArray[np.uint8]:
    return np.asarray(samples.photo().convert("L"))


def deep(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    return values.astype(np.uint16) * 257


def heic(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=90, **options)
    return file.getvalue()


def png_chunk(name: bytes, content: bytes, checksum: bytes | None = None) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content)) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + checksum
