"""Uploads that the event loop may decode itself: only small, plain PNGs."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from vit_api.decoding import image_limits


def small_png(size: tuple[int, int] = (28, 28), mode: str = "L", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("upload", "is_quick"),
    [
        pytest.param(small_png(), True, id="small"),
        pytest.param(small_png(mode="P"), True, id="palette"),
        pytest.param(small_png((128, 128), "RGBA"), True, id="largest"),
        pytest.param(small_png((129, 128)), False, id="larger"),
        pytest.param(small_png((4000, 4000)), False, id="bomb"),
        pytest.param(small_png(icc_profile=b"profile"), False, id="colour profile"),
        pytest.param(small_png() + bytes(20_000), False, id="long"),
        pytest.param(small_png()[:-12], False, id="truncated"),
        pytest.param(small_png()[:20], False, id="no header"),
        pytest.param(b"GIF89a" + small_png(), False, id="another format"),
        pytest.param(b"", False, id="empty"),
    ],
)
def test_only_small_plain_pngs_are_quick(upload: bytes, is_quick: bool) -> None:
    """Only files that can't take long, however hostile, are decoded on the event loop."""
    assert image_limits.is_quick(upload) is is_quick


def test_a_png_with_compressed_text_is_not_quick() -> None:
    """A kilobyte of compressed text can expand to a megabyte."""
    start, end = small_png()[:33], small_png()[33:]
    data = b"key\0\0" + zlib.compress(bytes(1 << 20))
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    assert not image_limits.is_quick(start + chunk + end)
