"""Cost estimates: of the right order of magnitude, for any bytes, without decoding them."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support import samples
from tests.support.pictures import heic
from vit_api.decoding.cost import _Header, _read_header, estimate
from vit_api.decoding.uploads import Pixels
from vit_api.web.core.decode_turns import LARGE_S


@pytest.mark.parametrize("name", sorted(samples.image_files()))
def test_the_size_is_found(name: str) -> None:
    """In every format and mode."""
    header = _read_header(samples.image_files()[name])
    assert (header.width, header.height) == (120, 90)


def test_the_size_of_a_heic_is_found() -> None:
    """In its boxes."""
    assert _read_header(heic(Image.new("RGB", (128, 96)))) == _Header("HEIC", 128, 96)


def test_large_images_in_small_files_are_expensive() -> None:
    """A WebP of 748 bytes can have 16 megapixels, and a progressive JPEG 88 scans."""
    webp = samples.encode(Image.new("RGB", (4096, 4096)), "WEBP", lossless=True, quality=0, method=0)
    assert estimate(webp).cpu_s > 0.3
    assert estimate(webp).held_bytes > 2.5e8
    jpeg = samples.encode(Image.new("L", (4096, 4096)), "JPEG", progressive=True)
    scan = jpeg[jpeg.rfind(b"\xff\xda") : -2]
    assert estimate(jpeg[:-2] + scan * 80 + jpeg[-2:]).cpu_s > 10 * estimate(jpeg).cpu_s or estimate(jpeg).cpu_s > 0.4


def test_small_images_are_cheap() -> None:
    """Cheap images are decoded before expensive ones."""
    for upload in samples.image_files().values():
        assert estimate(upload).cpu_s < 0.01
    assert estimate(Pixels(bytes(100))).cpu_s < 0.01


@given(st.sampled_from(sorted(samples.image_files())), st.integers(0, 200), st.binary(max_size=40))
def test_corrupt_files_have_a_cost(name: str, length: int, rest: bytes) -> None:
    """Truncated and overwritten files have a positive, bounded cost."""
    cost = estimate(samples.image_files()[name][:length] + rest)
    assert 0 < cost.cpu_s <= 5
    assert cost.held_bytes >= 0


def big_tiff(side: int) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((side, side), np.uint8), bigtiff=True, compression="zlib")
    return file.getvalue()


def tiled_tiff(side: int) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((64, 64), np.uint8), tile=(side, side), compression="zlib")
    return file.getvalue()


def gif_with(before: bytes, side: int = 64) -> bytes:
    """A GIF whose screen is 64 x 64, with a frame of any size."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x08\0;"
    return b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0, 0, 0) + before + frame


DEAR = {
    "BigTIFF": lambda: big_tiff(4096),
    "tile beyond the picture": lambda: tiled_tiff(4096),
    "frame beyond the screen": lambda: gif_with(b"", 4096),
    "comment in a hundred blocks": lambda: gif_with(b"!\xfe" + b"\1a" * 100 + b"\0"),
    "frame behind its metadata": lambda: b"\xff\xd8" + (b"\xff\xe1\xff\xff" + bytes(65_533)) * 300,
    "progressive of 80 scans": lambda: scans(80, progressive=True),
    "runs of a BMP": lambda: (
        b"BM"
        + struct.pack("<LHHL", 0, 0, 0, 54)
        + struct.pack("<LllHHLLllLL", 40, 64, 64, 1, 8, 1, 0, 0, 0, 0, 0)
        + bytes(200_000)
    ),
}


def scans(count: int, *, progressive: bool) -> bytes:
    plain = samples.encode(Image.new("L", (1024, 1024)), "JPEG", progressive=progressive)
    return plain[:-2] + plain[plain.rfind(b"\xff\xda") : -2] * count + plain[-2:]


@pytest.mark.parametrize("name", DEAR)
def test_what_takes_long_is_not_taken_for_cheap(name: str) -> None:
    """Whatever the first size in its header says, or if there is none."""
    assert estimate(DEAR[name]()).cpu_s > LARGE_S


def test_scans_that_no_decoder_reads_are_not_counted() -> None:
    """A baseline JPEG ends with its first scan if that has all components."""
    assert estimate(scans(80, progressive=False)).cpu_s < LARGE_S / 2


def test_a_frame_behind_extensions_is_found() -> None:
    """Sub-blocks may have the lengths that look like the start of a frame."""
    header = _read_header(gif_with(b"!\xfe\x2c" + b"," * 44 + b"\0!\xf9\4" + bytes(4) + b"\0", 100))
    assert (header.width, header.height) == (100, 100)


@pytest.mark.parametrize("upload", [b"", b"text that is no image", b"PK\3\4" + bytes(100)])
def test_what_is_no_image_is_cheap(upload: bytes) -> None:
    """It is refused by its first bytes."""
    assert estimate(upload).cpu_s < 0.001
