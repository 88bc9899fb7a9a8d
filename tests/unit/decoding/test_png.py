"""PNG files with unusual, corrupt or missing chunks."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest

from tests.support import samples
from tests.support.pictures import pixels, png_chunk
from vit_api.errors import BadImage

_CHUNKS: dict[str, Callable[[], bytes]] = {
    "text with a wrong checksum": lambda: png_chunk(b"tEXt", b"a\0b", b"xxxx"),
    "profile with a wrong checksum": lambda: png_chunk(b"iCCP", b"a\0\0zz", b"xxxx"),
    "transparency with a wrong checksum": lambda: png_chunk(b"tRNS", b"\0\1\0\1\0\1", b"xxxx"),
    "EXIF with a wrong checksum": lambda: png_chunk(b"eXIf", samples.orientation_exif(3).tobytes()[6:], b"xxxx"),
    "profile of 8 MB": lambda: png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(range(256)) * 31_250)),
    "text that unpacks to 50 MB": lambda: png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000))),
    "hundred texts that unpack to 1 MB": lambda: png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20))) * 100,
    "EXIF in a text that unpacks to 50 MB": lambda: png_chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(50_000_000))
    ),
    "short resolution": lambda: png_chunk(b"pHYs", b"a"),
    "gamma twice": lambda: png_chunk(b"gAMA", b"\0\0\0\1") * 2,
    "palette it does not need": lambda: png_chunk(b"sPLT", b"x"),
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("place", [33, -12], ids=["before the data", "after the data"])
@pytest.mark.parametrize("name", _CHUNKS)
def test_unusual_chunks_are_skipped(name: str, place: int, exact: bool) -> None:
    """As in browsers, other chunks and chunks with a wrong checksum are skipped."""
    plain = samples.image_files()["png"]
    upload = plain[:place] + _CHUNKS[name]() + plain[place:]
    np.testing.assert_array_equal(pixels(upload, exact=exact), pixels(plain, exact=exact))


def test_a_png_without_its_end_is_read() -> None:
    """A file without IEND has all its pixel data."""
    plain = samples.image_files()["png"]
    np.testing.assert_array_equal(pixels(plain[:-12]), pixels(plain))
    np.testing.assert_array_equal(pixels(plain[:-12] + b"\0" * 5), pixels(plain))


@pytest.mark.parametrize("missing", [24, 30, 40, 200])
def test_a_png_cut_in_its_data_is_corrupt(missing: int) -> None:
    """The IEND that we append must not be read as pixel data."""
    with pytest.raises(BadImage):
        pixels(samples.image_files()["png"][:-missing])


@pytest.mark.parametrize("after", [False, True], ids=["before the data", "after the data"])
def test_the_exif_orientation_of_a_png_is_applied(after: bool) -> None:
    """The EXIF chunk may precede or follow the pixel data, as the standard allows."""
    plain = samples.image_files()["png"]
    exif = png_chunk(b"eXIf", samples.orientation_exif(3).tobytes()[6:])
    upload = plain[:-12] + exif + plain[-12:] if after else plain[:33] + exif + plain[33:]
    np.testing.assert_array_equal(pixels(upload, exact=True), pixels(plain, exact=True)[::-1, ::-1])


@pytest.mark.parametrize("exact", [False, True])
def test_a_png_without_its_palette_is_corrupt(exact: bool) -> None:
    """PIL would show it black."""
    plain = samples.encode(samples.photo().quantize(16))
    start = plain.index(b"PLTE") - 4
    without = plain[:start] + plain[start + 12 + int.from_bytes(plain[start : start + 4], "big") :]
    with pytest.raises(BadImage):
        pixels(without, exact=exact)
