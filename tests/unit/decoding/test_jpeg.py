"""JPEG files that are truncated, padded or of unusual kinds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import samples
from tests.support.pictures import pixels
from vit_api.errors import BadImage, UnsupportedImage

JPEGS = ["jpeg", "jpeg progressive", "jpeg grey", "jpeg cmyk"]


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_without_its_last_marker_is_read(name: str, missing: int) -> None:
    """Some cameras omit it; the pixels are complete."""
    plain = samples.image_files()[name]
    for exact in (True, False):
        np.testing.assert_array_equal(pixels(plain[:-missing], exact=exact), pixels(plain, exact=exact))


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9, 0.97])
@pytest.mark.parametrize("name", JPEGS)
def test_a_truncated_jpeg_is_rejected(name: str, share: float) -> None:
    """Baseline and progressive files are rejected alike."""
    plain = samples.image_files()[name]
    with pytest.raises(BadImage, match="truncated"):
        pixels(plain[: int(len(plain) * share)])


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [True, False])
def test_a_large_truncated_jpeg_is_rejected(progressive: bool, subsampling: int) -> None:
    """Scaled decoding hides what the last scans add, but must not hide that they are missing."""
    plain = samples.encode(
        samples.photos()["coffee"].resize((1500, 1000)), "JPEG", progressive=progressive, subsampling=subsampling
    )
    np.testing.assert_array_equal(pixels(plain[:-2]), pixels(plain))
    with pytest.raises(BadImage, match="truncated"):
        pixels(plain[: len(plain) // 2])


@pytest.mark.parametrize("name", JPEGS)
def test_bytes_around_a_jpeg_are_ignored(name: str) -> None:
    """Bytes before the first marker, between it and the next, and after the last are skipped."""
    plain = samples.image_files()[name]
    for upload in (b"\r\n" + plain, bytes(700) + plain, plain[:2] + b"\0\0\0" + plain[2:], plain + b"junk" * 50):
        np.testing.assert_array_equal(pixels(upload), pixels(plain))


def test_unsupported_kinds_of_jpeg_are_rejected_by_name() -> None:
    """Files with 12 bits per sample or two components are not called corrupt."""
    plain = samples.image_files()["jpeg"]
    frame = plain.index(b"\xff\xc0")
    for place, value, what in ((4, 12, "12 bits per sample"), (9, 2, "2 components")):
        upload = plain[: frame + place] + bytes([value]) + plain[frame + place + 1 :]
        with pytest.raises(UnsupportedImage, match=what):
            pixels(upload)
