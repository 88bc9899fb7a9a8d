"""TIFF files of all kinds: read correctly, or rejected with their kind."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from tests.support import samples
from tests.support.pictures import assert_seen, deep, grey, pixels, rgb
from vit_api.errors import UnsupportedImage


def tiff(values: npt.NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


TIFFS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "grey 16": (lambda order: tiff(deep(grey()), byteorder=order), "L"),
    "rgb 16": (lambda order: tiff(deep(rgb()), photometric="rgb", byteorder=order), "RGB"),
    "rgba 16": (
        lambda order: tiff(
            np.dstack([deep(rgb()), deep(grey())]), photometric="rgb", extrasamples=["unassalpha"], byteorder=order
        ),
        "RGB",
    ),
    "grey where white is 0": (lambda order: tiff(255 - grey(), photometric="miniswhite", byteorder=order), "L"),
    "float up to 1": (lambda order: tiff((grey() / 255).astype("f4"), byteorder=order), "L"),
    "float up to 255": (lambda order: tiff(grey().astype("f4"), byteorder=order), "L"),
    "separate planes": (
        lambda order: tiff(
            rgb().transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate", byteorder=order
        ),
        "RGB",
    ),
    "cmyk": (
        lambda order: tiff(np.asarray(samples.photo().convert("CMYK")), photometric="separated", byteorder=order),
        "RGB",
    ),
    "cmyk 16": (
        lambda order: tiff(deep(np.asarray(samples.photo().convert("CMYK"))), photometric="separated", byteorder=order),
        "RGB",
    ),
    "two more bands": (
        lambda order: tiff(np.dstack([rgb(), grey(), grey()]), photometric="rgb", extrasamples=[0, 0], byteorder=order),
        "RGB",
    ),
    "tiles": (lambda order: tiff(rgb(), photometric="rgb", tile=(32, 32), byteorder=order), "RGB"),
}

OTHER_TIFFS: dict[str, tuple[Callable[[], bytes], str]] = {
    "float rgb": (lambda: tiff((rgb() / 255).astype("f4"), photometric="rgb"), "RGB with 3 bands of 32-bit floating"),
    "float 64": (lambda: tiff((grey() / 255).astype("f8")), "grey with 1 band of 64-bit floating"),
    "float 16": (lambda: tiff((grey() / 255).astype("f2")), "16-bit floating"),
    "float beyond 255": (lambda: tiff(grey().astype("f4") * 100), "floating-point numbers from"),
    "float with nan": (lambda: tiff(np.full((9, 9), np.nan, "f4")), "floating-point numbers from"),
    "integers of 32 bits": (lambda: tiff(grey().astype("u4") << 24), "32-bit integers"),
    "signed integers": (lambda: tiff(grey().astype("i2")), "16-bit signed integers"),
    "signed bytes": (lambda: tiff((grey() // 2).astype("i1")), "8-bit signed integers"),
    "signed bytes of rgb": (lambda: tiff((rgb() // 2).astype("i1"), photometric="rgb"), "8-bit signed integers"),
    "planes of 16 bits": (
        lambda: tiff(deep(rgb()).transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
        "16-bit integers in separate planes",
    ),
    "five grey bands": (
        lambda: tiff(np.dstack([rgb(), grey(), grey()]), photometric="minisblack", planarconfig="contig"),
        "grey with 5 bands",
    ),
    "cielab": (lambda: samples.encode(samples.photo().convert("LAB"), "TIFF"), "CIELAB"),
    "big-endian BigTIFF": (
        lambda: tiff(rgb(), photometric="rgb", bigtiff=True, byteorder=">"),
        "in a big-endian BigTIFF",
    ),
    "jpeg 2000": (lambda: tiff(rgb(), photometric="rgb", compression="jpeg2000"), "compressed by JPEG 2000"),
    "jpeg xl": (lambda: tiff(rgb(), photometric="rgb", compression="jpegxl"), "compressed by JPEG XL"),
    "lerc": (lambda: tiff(rgb(), photometric="rgb", compression="lerc"), "compressed by LERC"),
    "jpeg of 12 bits": (lambda: tiff(deep(rgb()) >> 4, photometric="rgb", compression="jpeg"), "12-bit integers"),
}


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("name", TIFFS)
def test_tiffs_are_read(name: str, order: str) -> None:
    """All depths, colour spaces and layouts look as in an image viewer."""
    build, mode = TIFFS[name]
    assert_seen(build(order), mode)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("values", [pytest.param(rgb, id="rgb"), pytest.param(lambda: deep(grey()), id="grey 16")])
def test_a_compressed_tiff_is_read(compression: str, values: Callable[[], Any]) -> None:
    """Every common lossless compression is read."""
    mode = "RGB" if values is rgb else "L"
    assert_seen(tiff(values(), compression=compression, photometric="rgb" if mode == "RGB" else "minisblack"), mode)


@pytest.mark.parametrize("name", OTHER_TIFFS)
def test_unsupported_kinds_of_tiff_are_rejected_by_name(name: str) -> None:
    """They are neither decoded to a black image nor called corrupt."""
    build, kind = OTHER_TIFFS[name]
    with pytest.raises(UnsupportedImage, match=kind) as caught:
        pixels(build())
    assert "corrupt" not in caught.value.message


def test_a_white_is_zero_tiff_of_16_bits_is_not_inverted() -> None:
    """PIL does not invert such files."""
    assert_seen(tiff(65535 - deep(grey()), photometric="miniswhite"), "L")


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_a_tiff_of_few_bits_is_read(bits: int, white_is_zero: bool) -> None:
    """Scanners and fax machines write them, either way round."""
    levels = grey() >> (8 - bits)
    height, width = levels.shape
    stored = (1 << bits) - 1 - levels if white_is_zero else levels
    rows = np.packbits(np.unpackbits(stored[..., None], axis=2)[..., 8 - bits :].reshape(height, -1), axis=1)
    data = rows.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 122), (277, 1)]
    tags += [(278, height), (279, len(data))]
    upload = b"II*\0" + struct.pack("<LH", 8, len(tags))
    upload += b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags) + bytes(4) + data
    seen = Image.fromarray((levels.astype(int) * 255 // ((1 << bits) - 1)).astype(np.uint8)).resize((48, 48), 2)
    assert np.abs(pixels(upload)[..., 0] - np.asarray(seen)).mean() < 1
