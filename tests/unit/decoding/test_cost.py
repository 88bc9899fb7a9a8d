"""Estimates of what decoding costs: of the right order, from any bytes, without decoding them."""

from __future__ import annotations

import io

import pillow_heif
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support import samples
from vit_api.decoding.cost import _Header, _read_header, estimate
from vit_api.decoding.uploads import Pixels


def heic(width: int, height: int) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (width, height))).save(file, quality=50)
    return file.getvalue()


@pytest.mark.parametrize("name", sorted(samples.image_files()))
def test_the_size_is_found(name: str) -> None:
    """In every format and mode."""
    header = _read_header(samples.image_files()[name])
    assert (header.width, header.height) == (120, 90)


def test_the_size_of_a_heic_is_found() -> None:
    """In its boxes."""
    assert _read_header(heic(128, 96)) == _Header("HEIC", 128, 96)


def test_large_pictures_in_small_files_are_dear() -> None:
    """A WebP of 748 bytes can have 16 megapixels, a progressive JPEG 88 scans."""
    webp = samples.encode(Image.new("RGB", (4096, 4096)), "WEBP", lossless=True, quality=0, method=0)
    assert estimate(webp).cpu_s > 0.3
    assert estimate(webp).held_bytes > 2.5e8
    jpeg = samples.encode(Image.new("L", (4096, 4096)), "JPEG", progressive=True)
    scan = jpeg[jpeg.rfind(b"\xff\xda") : -2]
    assert estimate(jpeg[:-2] + scan * 80 + jpeg[-2:]).cpu_s > 10 * estimate(jpeg).cpu_s or estimate(jpeg).cpu_s > 0.4


def test_small_pictures_are_cheap() -> None:
    """So they overtake the others."""
    for upload in samples.image_files().values():
        assert estimate(upload).cpu_s < 0.01
    assert estimate(Pixels(bytes(100))).cpu_s < 0.01


@given(st.sampled_from(sorted(samples.image_files())), st.integers(0, 200), st.binary(max_size=40))
def test_damaged_files_have_a_cost_too(name: str, length: int, rest: bytes) -> None:
    """Whatever is left of them."""
    cost = estimate(samples.image_files()[name][:length] + rest)
    assert 0 < cost.cpu_s <= 5
    assert cost.held_bytes >= 0
