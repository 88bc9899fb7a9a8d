"""The kinds of files that phones, cameras, scanners and programs write: read as a person sees them, or named in a 415.

`docs/images.md` lists them with these tests.
"""

from __future__ import annotations

import base64
import functools
import gzip
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
import tifffile
from PIL import Image

from tests.support import samples
from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding import heif
from vit_api.decoding.images import decode
from vit_api.errors import BadImage, ImageTooLarge, UnsupportedImage

SQUARE = Preprocessing((48, 48), None, None, 2, 1 / 255, (0.5,) * 3, (0.5,) * 3)
# What compression and colour tables change, on average; a picture that is black, inverted or shifted differs by 40.
CLOSE = 6.0


@functools.cache
def expected(mode: str = "RGB") -> npt.NDArray[np.int64]:
    return np.asarray(samples.photo().convert(mode).resize((48, 48), 2).convert("RGB")).astype(int)


def pixels(upload: bytes, **options: Any) -> npt.NDArray[np.int64]:
    return decode(upload, SQUARE, **{"exact": False, **options}).astype(int)


def assert_seen(upload: bytes, mode: str = "RGB") -> None:
    assert np.abs(pixels(upload) - expected(mode)).mean() < CLOSE


def rgb() -> npt.NDArray[np.uint8]:
    return np.asarray(samples.photo())


def grey() -> npt.NDArray[np.uint8]:
    return np.asarray(samples.photo().convert("L"))


def deep(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    return values.astype(np.uint16) * 257


def tiff(values: npt.NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def heic(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=90, **options)
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
def test_a_tiff_is_read_as_a_person_sees_it(name: str, order: str) -> None:
    """Whatever its depth, colours and layout."""
    build, mode = TIFFS[name]
    assert_seen(build(order), mode)


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("values", [pytest.param(rgb, id="rgb"), pytest.param(lambda: deep(grey()), id="grey 16")])
def test_a_compressed_tiff_is_read(compression: str, values: Callable[[], Any]) -> None:
    """Every lossless compression that programs write."""
    mode = "RGB" if values is rgb else "L"
    assert_seen(tiff(values(), compression=compression, photometric="rgb" if mode == "RGB" else "minisblack"), mode)


@pytest.mark.parametrize("name", OTHER_TIFFS)
def test_another_kind_of_tiff_is_named(name: str) -> None:
    """Never a black picture, and not called corrupt."""
    build, kind = OTHER_TIFFS[name]
    with pytest.raises(UnsupportedImage, match=kind) as caught:
        pixels(build())
    assert "corrupt" not in caught.value.message


def test_a_white_is_zero_tiff_of_16_bits_is_not_inverted() -> None:
    """PIL leaves it inverted."""
    assert_seen(tiff(65535 - deep(grey()), photometric="miniswhite"), "L")


@pytest.mark.parametrize("name", ["png 16-bit", "tiff 16-bit"])
def test_16_bits_of_grey_are_scaled(name: str) -> None:
    """The pipeline clips them to white; exact decoding keeps its pixels."""
    upload = samples.image_files()[name]
    assert_seen(upload, "L")
    assert (pixels(upload, exact=True) > 250).mean() > 0.9


def png_chunk(name: bytes, content: bytes, checksum: bytes | None = None) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content)) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + checksum


PNG_CHUNKS = {
    "text with a wrong checksum": png_chunk(b"tEXt", b"a\0b", b"xxxx"),
    "profile with a wrong checksum": png_chunk(b"iCCP", b"a\0\0zz", b"xxxx"),
    "transparency with a wrong checksum": png_chunk(b"tRNS", b"\0\1\0\1\0\1", b"xxxx"),
    "EXIF with a wrong checksum": png_chunk(b"eXIf", samples.orientation_exif(3).tobytes()[6:], b"xxxx"),
    "profile of 8 MB": png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(range(256)) * 31_250)),
    "text that unpacks to 50 MB": png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000))),
    "hundred texts that unpack to 1 MB": png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20))) * 100,
    "EXIF in a text that unpacks to 50 MB": png_chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(50_000_000))
    ),
    "short resolution": png_chunk(b"pHYs", b"a"),
    "gamma twice": png_chunk(b"gAMA", b"\0\0\0\1") * 2,
    "palette it does not need": png_chunk(b"sPLT", b"x"),
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("place", [33, -12], ids=["before the data", "after the data"])
@pytest.mark.parametrize("name", PNG_CHUNKS)
def test_a_png_is_read_whatever_is_beside_its_picture(name: str, place: int, exact: bool) -> None:
    """As browsers do: other chunks are skipped, and so are those whose checksum is wrong."""
    plain = samples.image_files()["png"]
    upload = plain[:place] + PNG_CHUNKS[name] + plain[place:]
    np.testing.assert_array_equal(pixels(upload, exact=exact), pixels(plain, exact=exact))


def test_a_png_without_its_end_is_read() -> None:
    """All its data is there."""
    plain = samples.image_files()["png"]
    np.testing.assert_array_equal(pixels(plain[:-12]), pixels(plain))
    np.testing.assert_array_equal(pixels(plain[:-12] + b"\0" * 5), pixels(plain))


@pytest.mark.parametrize("missing", [24, 30, 40, 200])
def test_a_png_that_is_cut_in_its_data_is_corrupt(missing: int) -> None:
    """The end that is added must not be taken for data."""
    with pytest.raises(BadImage):
        pixels(samples.image_files()["png"][:-missing])


@pytest.mark.parametrize("after", [False, True], ids=["before the data", "after the data"])
def test_orientation_in_the_exif_of_a_png_is_kept(after: bool) -> None:
    """Before the data or behind it, as the standard allows."""
    plain = samples.image_files()["png"]
    exif = png_chunk(b"eXIf", samples.orientation_exif(3).tobytes()[6:])
    upload = plain[:-12] + exif + plain[-12:] if after else plain[:33] + exif + plain[33:]
    np.testing.assert_array_equal(pixels(upload, exact=True), pixels(plain, exact=True)[::-1, ::-1])


JPEGS = ["jpeg", "jpeg progressive", "jpeg grey", "jpeg cmyk"]


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_without_its_last_marker_is_read(name: str, missing: int) -> None:
    """Some cameras leave it out; its pixels are all there."""
    plain = samples.image_files()[name]
    for exact in (True, False):
        np.testing.assert_array_equal(pixels(plain[:-missing], exact=exact), pixels(plain, exact=exact))


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9, 0.97])
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_is_cut_is_truncated(name: str, share: float) -> None:
    """Part of a picture is no picture, in baseline and progressive files alike."""
    plain = samples.image_files()[name]
    with pytest.raises(BadImage, match="truncated"):
        pixels(plain[: int(len(plain) * share)])


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [True, False])
def test_a_large_jpeg_that_is_cut_is_truncated(progressive: bool, subsampling: int) -> None:
    """Although it is scaled while it is decoded, which hides what the last scans add."""
    plain = samples.encode(
        samples.photos()["coffee"].resize((1500, 1000)), "JPEG", progressive=progressive, subsampling=subsampling
    )
    np.testing.assert_array_equal(pixels(plain[:-2]), pixels(plain))
    with pytest.raises(BadImage, match="truncated"):
        pixels(plain[: len(plain) // 2])


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_is_read_whatever_is_around_it(name: str) -> None:
    """Bytes before its first marker, between that and the next one, and behind the last."""
    plain = samples.image_files()[name]
    for upload in (b"\r\n" + plain, bytes(700) + plain, plain[:2] + b"\0\0\0" + plain[2:], plain + b"junk" * 50):
        np.testing.assert_array_equal(pixels(upload), pixels(plain))


@pytest.mark.parametrize("name", ["gif", "gif animated", "webp", "bmp", "png", "tiff", "avif"])
def test_trailing_bytes_are_ignored(name: str) -> None:
    """Behind the picture, anything may follow."""
    plain = samples.image_files()[name]
    np.testing.assert_array_equal(pixels(plain + b"junk" * 50), pixels(plain))


def test_a_gif_without_trailer_is_read() -> None:
    """Its frame is complete."""
    plain = samples.image_files()["gif"]
    np.testing.assert_array_equal(pixels(plain[:-1]), pixels(plain))


def bmp(header: bytes, data: bytes, palette: bytes = b"") -> bytes:
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<LHHL", start + len(data), 0, 0, start) + header + palette + data


def bmp_header(bits: int, compression: int, width: int, height: int, masks: bytes = b"") -> bytes:
    return struct.pack("<LllHHLLllLL", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0) + masks


def bmp_rows(rows: npt.NDArray[Any]) -> bytes:
    data = rows[::-1].reshape(len(rows), -1).view(np.uint8)
    return np.pad(data, ((0, 0), (0, -data.shape[1] % 4))).tobytes()


def bmps() -> dict[str, bytes]:
    """The variants that programs write, most of which PIL does not."""
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
    """With runs, 16 and 32 bits per pixel, and the headers of OS/2."""
    assert_seen(bmps()[name])


HEIC_BRANDS = [b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"miaf", b"MiHE"]


@pytest.mark.parametrize("brand", HEIC_BRANDS)
def test_a_heic_is_read_whatever_its_major_brand(brand: bytes) -> None:
    """The compatible brands tell it from AVIF."""
    upload = heic(samples.photo())
    assert_seen(upload[:8] + brand + upload[12:])


@pytest.mark.parametrize("brand", [b"avif", b"mif1", b"msf1"])
def test_an_avif_is_not_taken_for_a_heic(brand: bytes) -> None:
    """PIL's first guess takes every `mif1` for an AVIF."""
    upload = samples.image_files()["avif"]
    assert_seen(upload[:8] + brand + upload[12:])


def test_heics_of_every_kind_are_read() -> None:
    """Greyscale, alpha, 10 bits, bursts; each orientation is applied once."""
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
def test_a_heic_is_turned_upright_once(orientation: int) -> None:
    """Libheif turns it; its EXIF says the same, and must not turn it again."""
    stored = samples.photo((120, 80))
    exif = samples.orientation_exif(orientation)
    jpeg = samples.encode(stored, "JPEG", quality=95, exif=exif)
    upload = heic(stored, exif=exif.tobytes())
    assert np.abs(pixels(upload) - pixels(jpeg)).mean() < CLOSE


def test_a_heic_is_named_where_libheif_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform has no wheel of pillow-heif."""
    monkeypatch.setattr(heif, "HeifImageFile", None)
    with pytest.raises(UnsupportedImage, match="HEIC"):
        pixels(heic(samples.photo()))


def test_a_cut_heic_is_corrupt() -> None:
    """At every length."""
    upload = heic(samples.photo())
    for length in range(24, len(upload) - 1, 97):
        with pytest.raises((BadImage, UnsupportedImage)):
            pixels(upload[:length])


OTHERS = {
    "svg": (b"<?xml version='1.0'?>\n<!-- a drawing -->\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "svg with a byte order mark": (b"\xef\xbb\xbf<svg width='1'></svg>", "SVG"),
    "svg in UTF-16": ("\ufeff<svg width='1'></svg>".encode("utf-16-le"), "SVG"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
    "psd": (b"8BPS\0\1" + bytes(60), "PSD"),
    "cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(60), "CR2"),
    "cr3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "CR3"),
    "dng": (b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHLL", 50706, 1, 4, 0x0401) + bytes(9), "DNG"),
    "nef": (
        b"MM\0*\0\0\0\x08\0\3"
        + struct.pack(">HHLL", 254, 4, 1, 1)
        + struct.pack(">HHLL", 271, 2, 18, 90)
        + struct.pack(">HHLL", 330, 4, 2, 120)
        + bytes(99),
        "NEF",
    ),
    "raf": (b"FUJIFILMCCD-RAW 0201" + bytes(60), "RAF"),
    "jpeg xl": (b"\xff\x0a" + bytes(60), "JPEG XL"),
    "jpeg xl in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "JPEG XL"),
    "jpeg 2000": (samples.encode(samples.photo((8, 8)), "JPEG2000"), "JPEG 2000"),
    "mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "video"),
    "mov": (b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", "video"),
    "webm": (b"\x1a\x45\xdf\xa3" + bytes(60), "WebM"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "AVI"),
    "zip": (b"PK\3\4" + bytes(60), "ZIP"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "ico": (samples.encode(samples.photo((32, 32)), "ICO"), "icon"),
    "tga": (samples.encode(samples.photo((8, 8)), "TGA"), "TGA"),
    "ppm": (samples.encode(samples.photo((8, 8)), "PPM"), "PNM"),
    "svg in gzip": (gzip.compress(b"<svg xmlns='x'/>"), "SVGZ"),
    "svg behind a long comment": (b"<?xml version='1.0'?><!--" + b"x" * 5000 + b"--><svg/>", "SVG"),
    "pdf behind junk": (b"\n\n  %PDF-1.4\n", "PDF"),
    "radiance": (b"#?RGBE\nFORMAT=32-bit_rle_rgbe\n", "HDR"),
    "openexr": (b"\x76\x2f\x31\x01" + bytes(30), "OpenEXR"),
    "dds": (b"DDS " + bytes(124), "DDS"),
    "pcx": (samples.encode(samples.photo((8, 8)), "PCX"), "PCX"),
    "tga without its footer": (bytes([0, 0, 2] + [0] * 9) + b"\x08\0\x08\0\x18\0" + bytes(192), "TGA"),
    "bitmap without its file header": (samples.encode(samples.photo((8, 8)), "BMP")[14:], "DIB"),
    "mng": (b"\x8aMNG\r\n\x1a\n" + bytes(30), "MNG"),
    "png whose line ends were converted": (samples.encode(samples.photo((8, 8))).replace(b"\r\n", b"\n"), "line ends"),
    "iphone's png": (
        samples.encode(samples.photo((8, 8)))[:8] + bytes([0, 0, 0, 4]) + b"CgBI" + bytes(8) + bytes(99),
        "CgBI",
    ),
    "docx": (b"PK\3\4" + bytes(60), "office document"),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(60), "office document"),
    "mp3": (b"ID3\x04" + bytes(60), "sound"),
    "tar": (bytes(257) + b"ustar\x0000" + bytes(200), "tar"),
    "base64": (base64.b64encode(samples.image_files()["jpeg"]), "base64 text"),
    "base64 in lines": (base64.encodebytes(samples.image_files()["jpeg"]), "base64 text"),
    "data url": (b"data:image/png;base64,AAAA", "base64 text"),
    "json": (b'{"image": null}', "JSON"),
    "storage's error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
    "part of a page": (b"  <div>404 Not Found</div>", "HTML"),
    "text": ("No such file: b\u00e4r.jpg".encode(), "text"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_format_is_named_with_what_to_send(name: str) -> None:
    """A 415 that a person can act on."""
    upload, what = OTHERS[name]
    with pytest.raises(UnsupportedImage, match=f"The upload is .*{what}.* not supported. (Render|Export|Send|Copy)"):
        pixels(upload)


@pytest.mark.parametrize(
    ("width", "height", "mode"),
    [(4900, 3266, "RGB"), (6000, 4000, "RGB"), (8000, 6000, "RGB"), (12_000, 9000, "L"), (16_382, 3628, "RGB")],
)
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_photos_of_every_camera_are_read(width: int, height: int, mode: str, progressive: bool) -> None:
    """16 to 108 megapixels, and panoramas: only what the JPEG decoder's own scaling leaves is decoded."""
    upload = samples.encode(samples.photo().convert(mode).resize((width, height)), "JPEG", progressive=progressive)
    assert_seen(upload, mode)


@pytest.mark.parametrize(
    ("image_format", "size", "mode"),
    [
        ("PNG", (8000, 8000), "RGB"),
        ("PNG", (8000, 8000), "RGBA"),
        ("TIFF", (8000, 8000), "L"),
        ("WEBP", (5000, 4000), "RGB"),
        ("AVIF", (4900, 4000), "RGB"),
    ],
)
def test_large_pictures_are_read_as_memory_allows(image_format: str, size: tuple[int, int], mode: str) -> None:
    """64 megapixels, where the decoder takes no more than 4 bytes for each; one pixel too many is a 413 by memory."""
    options = {"speed": 10} if image_format == "AVIF" else {}
    upload = samples.encode(Image.new(mode, size, 100), image_format, **options)
    assert pixels(upload).shape == (48, 48, 3)
    with pytest.raises(ImageTooLarge, match=r"decoding it takes \d+ MiB, and at most 60 MiB"):
        pixels(upload, max_bytes=60 * 2**20)


BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "green": (0, 128, 0)}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("colour", BACKGROUNDS)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "WEBP", "HEIC", "1-colour"])
def test_pictures_that_look_alike_give_the_same_pixels(mode: str, colour: str, exact: bool) -> None:
    """What is hidden under transparent pixels does not matter; the background shows through."""
    background = BACKGROUNDS[colour]
    files = []
    for hidden in (0, 200):
        grey_picture = Image.new("L", (64, 64), hidden)
        grey_picture.paste(100, (0, 0, 32, 64))
        alpha = Image.new("L", (64, 64), 0)
        alpha.paste(255, (0, 0, 32, 64))
        picture = Image.merge("RGBA", [grey_picture] * 3 + [alpha])
        if mode == "LA":
            files.append(samples.encode(picture.convert("LA")))
        elif mode == "P":
            paletted = grey_picture.convert("P")
            files.append(samples.encode(paletted, transparency=hidden))
        elif mode == "1-colour":
            files.append(samples.encode(grey_picture.convert("RGB"), transparency=(hidden,) * 3))
        elif mode == "WEBP":
            files.append(samples.encode(picture, "WEBP", lossless=True, exact=True))
        elif mode == "HEIC":
            files.append(heic(picture, chroma=444))
        else:
            files.append(samples.encode(picture))
    first, second = (pixels(file, background=background, exact=exact) for file in files)
    tolerance = 6 if mode == "HEIC" else 1
    assert np.abs(first - second).max() <= tolerance
    assert np.abs(first[:, 30:] - background).max() <= tolerance
    assert np.abs(first[:, :18] - 100).max() <= tolerance


def test_alpha_is_dropped_by_default() -> None:
    """As transformers does."""
    picture = Image.new("RGBA", (64, 64), (9, 120, 77, 0))
    assert (pixels(samples.encode(picture)) == (9, 120, 77)).all()


def test_jpegs_of_other_kinds_are_named() -> None:
    """12 bits and two components are no damage."""
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
