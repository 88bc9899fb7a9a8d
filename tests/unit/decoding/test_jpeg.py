"""JPEG files that are truncated, padded or of unusual kinds."""

from __future__ import annotations

from typing import Any

import imagecodecs
import numpy as np
import pytest

from tests.support import samples
from tests.support.pictures import assert_seen, grey, pixels
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


@pytest.mark.parametrize(
    ("code", "what"),
    [(0xF7, "JPEG-LS"), (0xCB, "lossless with arithmetic coding"), (0xC5, "hierarchical")],
)
def test_jpegs_with_another_coding_are_named(code: int, what: str) -> None:
    """They are no damage either."""
    plain = samples.image_files()["jpeg"]
    at = plain.index(b"\xff\xc0") + 1
    with pytest.raises(UnsupportedImage, match=what):
        pixels(plain[:at] + bytes([code]) + plain[at + 1 :])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"subsampling": "4:1:1"}, id="4:1:1"),
        pytest.param({"restart_marker_blocks": 2}, id="restart markers"),
        pytest.param({"keep_rgb": True}, id="RGB"),
    ],
)
def test_jpegs_of_every_layout_are_read(options: dict[str, Any]) -> None:
    """As cameras and programs write them."""
    assert_seen(samples.encode(samples.photo(), "JPEG", quality=90, **options))


def test_a_cmyk_jpeg_without_adobes_marker_is_read() -> None:
    """With the marker, it is inverted; both look alike."""
    with_marker = samples.image_files()["jpeg cmyk"]
    at = with_marker.index(b"\xff\xee")
    upload = with_marker[:at] + with_marker[at + 2 + int.from_bytes(with_marker[at + 2 : at + 4], "big") :]
    assert pixels(upload).shape == (48, 48, 3)


def test_a_lossless_jpeg_is_read() -> None:
    """As scanners and medical devices write it."""
    assert_seen(bytes(imagecodecs.ljpeg_encode(grey())), "L")
