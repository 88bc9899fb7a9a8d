"""HEIC files of all brands and kinds."""

from __future__ import annotations

import io

import numpy as np
import pillow_heif
import pytest

from tests.support import samples
from tests.support.pictures import CLOSE, assert_seen, deep, heic, pixels, rgb
from vit_api.decoding import heif
from vit_api.errors import BadImage, UnsupportedImage

HEIC_BRANDS = [b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"miaf", b"MiHE"]


@pytest.mark.parametrize("brand", HEIC_BRANDS)
def test_a_heic_of_any_major_brand_is_read(brand: bytes) -> None:
    """The compatible brands distinguish it from AVIF."""
    upload = heic(samples.photo())
    assert_seen(upload[:8] + brand + upload[12:])


@pytest.mark.parametrize("brand", [b"avif", b"mif1", b"msf1"])
def test_an_avif_is_not_taken_for_a_heic(brand: bytes) -> None:
    """Both formats use the brand `mif1`, which PIL takes for AVIF."""
    upload = samples.image_files()["avif"]
    assert_seen(upload[:8] + brand + upload[12:])


def test_heics_of_every_kind_are_read() -> None:
    """Greyscale, alpha, 10 bits and bursts are supported."""
    photo = samples.photo()
    with_alpha = photo.copy()
    with_alpha.putalpha(128)
    assert_seen(heic(photo.convert("L")), "L")
    assert_seen(heic(with_alpha))
    file = io.BytesIO()
    pillow_heif.from_bytes(mode="RGB;16", size=photo.size, data=deep(rgb()).tobytes()).save(file, quality=90)
    assert_seen(file.getvalue())
    burst = pillow_heif.from_pillow(photo)
    burst.add_from_pillow(photo.rotate(180))
    file = io.BytesIO()
    burst.save(file, quality=90)
    assert_seen(file.getvalue())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_heic_is_applied_once(orientation: int) -> None:
    """Libheif applies it, so the EXIF orientation must not be applied again."""
    stored = samples.photo((120, 80))
    exif = samples.orientation_exif(orientation)
    jpeg = samples.encode(stored, "JPEG", quality=95, exif=exif)
    upload = heic(stored, exif=exif.tobytes())
    assert np.abs(pixels(upload) - pixels(jpeg)).mean() < CLOSE


def test_a_heic_is_rejected_without_libheif(monkeypatch: pytest.MonkeyPatch) -> None:
    """Platforms without a pillow-heif wheel reject HEIC by name."""
    monkeypatch.setattr(heif, "HeifImageFile", None)
    with pytest.raises(UnsupportedImage, match="HEIC"):
        pixels(heic(samples.photo()))


def test_a_truncated_heic_is_rejected() -> None:
    """Files cut at any length are rejected."""
    upload = heic(samples.photo())
    for length in range(24, len(upload) - 1, 97):
        with pytest.raises((BadImage, UnsupportedImage)):
            pixels(upload[:length])
