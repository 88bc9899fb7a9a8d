"""Cost estimates: of the right order of magnitude, for any bytes, without decoding them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support import samples
from tests.support.pictures import heic
from vit_api.decoding.cost import _header, estimate
from vit_api.decoding.uploads import Pixels


@pytest.mark.parametrize("name", sorted(samples.image_files()))
def test_the_size_is_read_from_the_header(name: str) -> None:
    """Files of every format and mode have their size read."""
    assert _header(samples.image_files()[name])[1:] == (120, 90)


def test_the_size_of_a_heic_is_read() -> None:
    """It is read from the file's boxes."""
    assert _header(heic(Image.new("RGB", (128, 96)))) == ("HEIC", 128, 96)


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
