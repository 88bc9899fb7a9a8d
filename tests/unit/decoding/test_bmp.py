"""BMP files of all variants."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support import samples
from tests.support.pictures import assert_seen, pixels, rgb
from vit_api.errors import UnsupportedImage


def bmp(header: bytes, data: bytes, palette: bytes = b"") -> bytes:
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<LHHL", start + len(data), 0, 0, start) + header + palette + data


def bmp_header(bits: int, compression: int, width: int, height: int, masks: bytes = b"") -> bytes:
    return struct.pack("<LllHHLLllLL", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0) + masks


def bmp_rows(rows: npt.NDArray[Any]) -> bytes:
    data = rows[::-1].reshape(len(rows), -1).view(np.uint8)
    return np.pad(data, ((0, 0), (0, -data.shape[1] % 4))).tobytes()


def bmps() -> dict[str, bytes]:
    """Return a file of each variant, most of which PIL can't write."""
    values = rgb().astype(np.uint32)
    height, width = values.shape[:2]
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    paletted = samples.photo().quantize(256)
    indices = np.asarray(paletted)
    colours = np.frombuffer(bytes(paletted.getpalette() or b"").ljust(768, b"\0"), np.uint8).reshape(256, 3)[:, ::-1]
    long_palette = np.pad(colours, ((0, 0), (0, 1))).tobytes()
    runs = b"".join(b"".join(bytes([1, index]) for index in row) + b"\0\0" for row in indices[::-1]) + b"\0\1"
    masks_565 = struct.pack("<LLL", 0xF800, 0x7E0, 0x1F)
    as_565 = ((red >> 3 << 11) | (green >> 2 << 5) | (blue >> 3)).astype(np.uint16)
    as_555 = ((red >> 3 << 10) | (green >> 3 << 5) | (blue >> 3)).astype(np.uint16)
    as_32 = (red << 16 | green << 8 | blue).astype(np.uint32)
    return {
        "rle": bmp(bmp_header(8, 1, width, height), runs, long_palette),
        "16 bits, 565": bmp(bmp_header(16, 3, width, height, masks_565), bmp_rows(as_565)),
        "16 bits, 555": bmp(bmp_header(16, 0, width, height), bmp_rows(as_555)),
        "32 bits": bmp(bmp_header(32, 0, width, height), bmp_rows(as_32)),
        "OS/2": bmp(struct.pack("<LHHHH", 12, width, height, 1, 8), bmp_rows(indices), colours.tobytes()),
        "top-down": bmp(bmp_header(24, 0, width, -height), bmp_rows(rgb()[::-1, :, ::-1].copy())),
    }


@pytest.mark.parametrize("name", ["rle", "16 bits, 565", "16 bits, 555", "32 bits", "OS/2", "top-down"])
def test_every_variant_of_bmp_is_read(name: str) -> None:
    """Run-length encoding, 16 and 32 bits per pixel, and OS/2 headers are supported."""
    assert_seen(bmps()[name])


@pytest.mark.parametrize(
    ("bits", "compression", "kind"),
    [
        pytest.param(0, 4, "with a JPEG in it", id="JPEG"),
        pytest.param(0, 5, "with a PNG in it", id="PNG"),
        pytest.param(24, 4, "with a JPEG in it", id="JPEG that declares bits"),
        pytest.param(32, 11, "with CMYK in it", id="CMYK"),
        pytest.param(64, 0, "with 64 bits per pixel", id="64 bits"),
        pytest.param(2, 0, "with 2 bits per pixel", id="2 bits"),
        pytest.param(24, 6, "with compression 6", id="unknown compression"),
    ],
)
def test_other_kinds_are_rejected_by_name(bits: int, compression: int, kind: str) -> None:
    """A BMP may be little more than an envelope; none of these is called corrupt."""
    upload = bmp(bmp_header(bits, compression, 64, 64), samples.encode(samples.photo(), "JPEG"), bytes(1024))
    with pytest.raises(UnsupportedImage, match=kind):
        pixels(upload)


def test_unusual_masks_and_headers_are_rejected_by_name() -> None:
    """10 bits for each colour, which PIL does not read, and the short form of OS/2's second header."""
    masks = struct.pack("<LLL", 1023 << 20, 1023 << 10, 1023)
    with pytest.raises(UnsupportedImage, match="with unusual colour masks"):
        pixels(bmp(bmp_header(32, 3, 8, 8, masks), bytes(256)))
    with pytest.raises(UnsupportedImage, match="with a header of 16 bytes"):
        pixels(bmp(struct.pack("<LllHH", 16, 8, 8, 1, 24), bytes(256)))
