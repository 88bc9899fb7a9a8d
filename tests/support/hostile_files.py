"""Files built to exhaust memory or CPU time, each with the outcome of decoding it."""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pillow_heif
from PIL import Image

from tests.support.decoding_process import MAX_SIDE, PIXELS
from tests.support.pictures import png_chunk

MAX_UPLOAD_BYTES = 10 * 2**20

BAD, LARGE, UNSUPPORTED, EMPTY = "bad_image", "image_too_large", "unsupported_image", "empty_upload"


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


@functools.cache
def small(image_format: str, **options: Any) -> bytes:
    return encode(Image.radial_gradient("L").resize((64, 64)).convert("RGB"), image_format, **options)


def huge(image_format: str, mode: str = "RGB", **options: Any) -> bytes:
    return encode(Image.new(mode, (MAX_SIDE, MAX_SIDE), 100), image_format, **options)


def lying_avif(side: int) -> bytes:
    """Return an AVIF whose container declares 64 x 64 pixels."""
    true_size, told = (b"ispe" + struct.pack(">III", 0, length, length) for length in (side, 64))
    upload = encode(Image.new("L", (side, side), 100), "AVIF", speed=10)
    assert true_size in upload
    return upload.replace(true_size, told)


def heic(width: int, height: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    image = pillow_heif.from_pillow(Image.new(mode, (width, height), (90, 100, 110)))
    # A tenth of the time: one colour needs no small blocks.
    image.save(file, quality=90, enc_params={"preset": "ultrafast", "x265:ctu": "64", "x265:min-cu-size": "32"})
    return file.getvalue()


def announced_heic(width: int, height: int) -> bytes:
    """Return a HEIC of 64 x 64 pixels whose container declares another size."""
    true_size, told = (b"ispe" + struct.pack(">III", 0, *size) for size in ((64, 64), (width, height)))
    upload = heic(64, 64)
    assert true_size in upload
    return upload.replace(true_size, told)


def lying_heic(side: int) -> bytes:
    """Return a HEIC whose container declares 64 x 64 pixels."""
    true_size, told = (b"ispe" + struct.pack(">III", 0, length, length) for length in (side, 64))
    upload = heic(side, side)
    assert true_size in upload
    return upload.replace(true_size, told)


def png_with(chunks: bytes) -> bytes:
    plain = small("PNG")
    return plain[:33] + chunks + plain[33:]


def filled(unit: bytes, limit: int = MAX_UPLOAD_BYTES - 10_000) -> bytes:
    """Repeat a unit up to the maximum upload size."""
    return unit * (limit // len(unit))


def announced_png(width: int, height: int, pixels: bytes = b"", *, bits: int = 8, colours: int = 2) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def black_png(side: int, colours: int, channels: int, bits: int = 8) -> bytes:
    """Return a PNG as Pillow encodes it, in a third of the time."""
    packed = zlib.compressobj(1)
    row = bytes(1 + side * channels * bits // 8)
    pixels = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    return announced_png(side, side, pixels, bits=bits, colours=colours)


@functools.cache
def zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(segments: bytes) -> bytes:
    plain = small("JPEG")
    return plain[:2] + segments + plain[2:]


def announced_jpeg(width: int, height: int, **options: Any) -> bytes:
    """Return a JPEG of 64 x 64 pixels whose header declares another size."""
    true_size, told = (b"\x08" + struct.pack(">HH", *size) for size in ((64, 64), (height, width)))
    upload = small("JPEG", **options)
    assert true_size in upload
    return upload.replace(true_size, told)


def jpeg_of_scans(scans: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    plain = huge("JPEG", "L", progressive=True)
    return plain[:-2] + plain[plain.rfind(b"\xff\xda") : -2] * scans + b"\xff\xd9"


def directory(tags: list[tuple[int, int, int, int]], rest: bytes = b"") -> bytes:
    """Return a TIFF file with tags of (tag, type, count, value), followed by `rest`."""
    packed = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + packed + bytes(4) + rest


def tiff(tags: list[tuple[int, int, int, int]], rest: bytes, width: int = 64, height: int = 64) -> bytes:
    """Return a greyscale TIFF with additional tags."""
    needed = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    return directory(sorted([*needed, *tags]), rest)


def sharing(kind: int, tags: int, size: int, first: int = 40_000) -> list[tuple[int, int, int, int]]:
    """Return tags that all refer to the same bytes of the file, from offset 100,000 on."""
    return [(first + tag, kind, size // (8 if kind == 5 else 1), 100_000) for tag in range(tags)]


def tiled(side: int) -> bytes:
    data = zeros(2**28)
    offset = 14 + 12 * 10
    tags = [(259, 3, 1, 8), (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, offset), (325, 4, 1, len(data))]
    return tiff(tags, data)


def nested_tiff() -> bytes:
    """Return a TIFF whose directory is its own EXIF, GPS and interoperability directory, and the next page."""
    strip = [(259, 3, 1, 1), (273, 4, 1, 8), (278, 4, 1, 64), (279, 4, 1, 4096)]
    upload = tiff([*strip, (330, 4, 1, 8), (34665, 4, 1, 8), (34853, 4, 1, 8), (40965, 4, 1, 8)], bytes(8192))
    end = 10 + 12 * 13
    return upload[:end] + struct.pack("<L", 8) + upload[end + 4 :]


def gif(before: bytes = b"", width: int = 64, height: int = 64) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\0;"
    return b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0, 0, 0) + before + frame


def webp(width: int, height: int) -> bytes:
    """Return an animation whose canvas is larger than its frame."""

    def three_bytes(value: int) -> bytes:
        return value.to_bytes(3, "little")

    picture = small("WEBP")[12:]
    canvas = b"VP8X" + struct.pack("<LL", 10, 2) + three_bytes(width - 1) + three_bytes(height - 1)
    frame = bytes(6) + three_bytes(63) * 2 + b"\x64\0\0\0" + picture
    body = (
        b"WEBP" + canvas + b"ANIM" + struct.pack("<L", 6) + bytes(6) + b"ANMF" + struct.pack("<L", len(frame)) + frame
    )
    return b"RIFF" + struct.pack("<L", len(body)) + body


def bmp_runs(runs: bytes) -> bytes:
    header = struct.pack("<LllHHLLllLL", 40, MAX_SIDE, MAX_SIDE, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<LHHL", 0, 0, 0, 54 + 1024) + header + bytes(range(256)) * 4 + runs


def animation(image_format: str, frames: int = 2_000) -> bytes:
    pictures = [Image.new("L", (16, 16), index % 251) for index in range(frames)]
    return encode(pictures[0].convert("RGB"), image_format, save_all=True, append_images=pictures[1:], duration=20)


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("cat.jpg", small("JPEG"))
    return file.getvalue()


def exif_png(content: bytes) -> bytes:
    return png_with(png_chunk(b"eXIf", content))


LOADED = bytes(9_000_000)

FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    # Images that are large when decoded.
    "png of 60000 x 60000": (lambda: announced_png(60_000, 60_000, zeros(2**24)), LARGE),
    "png with more data than pixels": (lambda: announced_png(64, 64, zeros(2**28)), PIXELS),
    "gif of 65535 x 65535": (lambda: b"GIF89a\xff\xff\xff\xff" + small("GIF")[10:], LARGE),
    "gif with a frame of 60000 x 60000": (lambda: gif(b"!\xf9\x04\x08\0\0\0\0", 60_000, 60_000), LARGE),
    "webp with a canvas of 16000 x 16000": (lambda: webp(16_000, 16_000), LARGE),
    "tiff of 60000 x 60000": (lambda: tiff([(259, 3, 1, 8), (273, 4, 1, 8)], zeros(2**24), 60_000, 60_000), LARGE),
    "tiff with a tile of 32768 x 32768": (lambda: tiled(32_768), BAD),
    "avif of the maximum size": (lambda: huge("AVIF", speed=10), PIXELS),
    "webp of the maximum size": (lambda: huge("WEBP", "RGBA", lossless=True, quality=0, method=0), PIXELS),
    "png of the maximum size": (lambda: huge("PNG", "RGBA", compress_level=1), PIXELS),
    "jpeg of the maximum size": (lambda: huge("JPEG", "CMYK", progressive=True), PIXELS),
    # Odd sizes.
    "1 x 1": (lambda: encode(Image.new("RGB", (1, 1)), "PNG"), PIXELS),
    "1 x 4096": (lambda: encode(Image.new("RGB", (1, 4096)), "WEBP"), PIXELS),
    "1 x 60000": (lambda: encode(Image.new("RGB", (1, 60_000)), "PNG"), LARGE),
    "60000 x 1": (lambda: encode(Image.new("RGB", (60_000, 1)), "JPEG"), LARGE),
    "0 x 64": (lambda: announced_png(0, 64), BAD),
    # Many frames, scans, chunks and segments.
    "gif of thousands of frames": (lambda: animation("GIF"), PIXELS),
    "png of thousands of frames": (lambda: animation("PNG"), PIXELS),
    "webp of thousands of frames": (lambda: animation("WEBP"), PIXELS),
    "tiff of thousands of pages": (lambda: animation("TIFF", 1_000), PIXELS),
    "avif of more pixels than declared": (lambda: lying_avif(6000), PIXELS),
    "avif of many frames": (lambda: animation("AVIF", 50), PIXELS),
    "jpeg of 80 more scans": (lambda: jpeg_of_scans(80), PIXELS),
    "heic of more pixels than declared": (lambda: lying_heic(6000), BAD),
    "jpeg of 80 scans, truncated": (lambda: jpeg_of_scans(80)[:-2], BAD),
    "jpeg of 1000 more scans": (lambda: jpeg_of_scans(1_000), BAD),
    "jpeg of empty segments": (lambda: jpeg_with(filled(jpeg_segment(0xE0, b""))), BAD),
    "jpeg of EXIF in pieces": (lambda: jpeg_with(filled(jpeg_segment(0xE1, b"Exif\0\0a"))), BAD),
    # Metadata.
    "jpeg with a colour profile of 6 MB": (
        lambda: jpeg_with(
            b"".join(
                jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([part, 100]) + bytes(60_000)) for part in range(1, 101)
            )
        ),
        PIXELS,
    ),
    "jpeg with an index of fractions": (
        lambda: jpeg_with(
            jpeg_segment(0xE2, b"MPF\0" + directory([(t, 5, 7_000, 9_000) for t in range(500)], bytes(56_000)))
        ),
        PIXELS,
    ),
    "png with EXIF that repeats itself": (lambda: exif_png(filled(b"Exif\0\0")), PIXELS),
    "png with EXIF whose tags share data": (lambda: exif_png(directory(sharing(7, 300, 8_000_000), LOADED)), PIXELS),
    "png turned by a million fractions": (lambda: exif_png(directory(sharing(5, 1, 8_000_000, 274), LOADED)), PIXELS),
    "png with a text of 8 MB": (lambda: png_with(png_chunk(b"tEXt", b"Comment\0" + LOADED)), PIXELS),
    "png with texts of 100 MB": (lambda: png_with(png_chunk(b"zTXt", b"a\0\0" + zeros(2**20)) * 100), PIXELS),
    "png of colour profiles": (lambda: png_with(filled(png_chunk(b"iCCP", b"p\0\0" + zeros(2**20)))), PIXELS),
    "png of empty chunks": (lambda: png_with(filled(png_chunk(b"teST", b""))), BAD),
    "png of empty data": (lambda: png_with(filled(png_chunk(b"IDAT", b""))), BAD),
    "png of truncated texts": (
        lambda: png_with(filled(png_chunk(b"zTXt", b"a\0\0" + zeros(2**20)[:-6] + b"broken"))),
        PIXELS,
    ),
    "png of EXIF in texts": (
        lambda: png_with(filled(png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zeros(2**19)))),
        PIXELS,
    ),
    "png of repeated EXIF": (
        lambda: png_with(filled(png_chunk(b"eXIf", directory([(274, 3, 1, 3)], bytes(400))))),
        PIXELS,
    ),
    "png with an international text of 16 MB": (
        lambda: png_with(png_chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(2**24))),
        PIXELS,
    ),
    "tiff whose tags share data": (lambda: tiff(sharing(7, 300, 8_000_000), LOADED), BAD),
    "tiff of 60000 tags": (lambda: directory([(tag, 3, 1, 0) for tag in range(60_000)]), BAD),
    "tiff of a million strips": (
        lambda: tiff([(259, 3, 1, 1), (273, 4, 1_000_000, 100_000), (278, 4, 1, 1)], LOADED),
        BAD,
    ),
    "tiff that contains itself": (nested_tiff, PIXELS),
    # Files of another format than their first bytes suggest.
    "zip": (archive, UNSUPPORTED),
    "html": (lambda: b"<html><img src='cat.jpg'></html>", UNSUPPORTED),
    "empty": (lambda: b"", EMPTY),
    "png behind a jpeg's first bytes": (lambda: b"\xff\xd8\xff\xe0" + small("PNG"), BAD),
    "zip behind a png's first bytes": (lambda: b"\x89PNG\r\n\x1a\n" + archive(), BAD),
    "html behind a gif's first bytes": (lambda: b"GIF89a<script>alert(1)</script>", BAD),
    "zeros behind a tiff's first bytes": (lambda: b"II*\0" + LOADED, BAD),
}

BURNING: dict[str, Callable[[], bytes]] = {
    "gif with a comment in bytes": lambda: gif(b"!\xfe" + filled(b"\1a") + b"\0"),
    "gif with a comment in blocks": lambda: gif(b"!\xfe" + filled(b"\xff" + b"a" * 255) + b"\0"),
    "jpeg with 10 MB between segments": lambda: jpeg_with(jpeg_segment(0xE0, b"") + filled(b"\0")),
    "bmp of runs of no pixels": lambda: bmp_runs(filled(b"\0\0")),
}

# Files that the default limits accept, but exact decoding within MAX_SIDE does not.
BY_DEFAULT = {"1 x 60000": PIXELS, "60000 x 1": PIXELS}

# The largest image of each kind that is accepted by default, and a larger one that is not.
LARGEST: dict[str, tuple[Callable[[], bytes], str]] = {
    "jpeg of 108 megapixels": (lambda: encode(Image.new("RGB", (12_000, 9000), 100), "JPEG"), PIXELS),
    "progressive jpeg of 108 megapixels": (
        lambda: encode(Image.new("YCbCr", (12_000, 9000), 100), "JPEG", progressive=True),
        PIXELS,
    ),
    "progressive jpeg of 108 megapixels with full chroma": (
        lambda: announced_jpeg(12_000, 9000, progressive=True, subsampling=0),
        LARGE,
    ),
    "jpeg of 85 megapixels without its end marker": (
        lambda: encode(Image.new("RGB", (9200, 9200), 100), "JPEG")[:-2],
        PIXELS,
    ),
    "png of 64 megapixels": (lambda: black_png(8000, 2, 3), PIXELS),
    "png of 64 megapixels with alpha": (lambda: black_png(8000, 6, 4), PIXELS),
    "png of 64 megapixels with a palette": (lambda: encode(Image.new("P", (8000, 8000), 100), "PNG"), PIXELS),
    "png of 57 megapixels of 16 bits": (lambda: black_png(7550, 0, 1, 16), PIXELS),
    "png of 43 megapixels of grey and alpha": (lambda: black_png(6550, 4, 2), PIXELS),
    "png of 100 megapixels": (lambda: announced_png(10_000, 10_000), LARGE),
    "gif of 64 megapixels": (lambda: encode(Image.new("P", (8000, 8000), 100), "GIF"), PIXELS),
    "tiff of 64 megapixels": (
        lambda: encode(Image.new("RGB", (8000, 8000), 100), "TIFF", compression="tiff_lzw"),
        PIXELS,
    ),
    "tiff of 28 megapixels of floats": (
        lambda: encode(Image.new("F", (5300, 5300), 0.5), "TIFF", compression="tiff_lzw"),
        PIXELS,
    ),
    "bmp of 10 megapixels": (lambda: encode(Image.new("RGB", (3300, 3300), 100), "BMP"), PIXELS),
    "webp of 21 megapixels": (
        lambda: encode(Image.new("RGBA", (4640, 4640), 100), "WEBP", lossless=True, quality=0, method=0),
        PIXELS,
    ),
    "webp of 25 megapixels": (lambda: encode(Image.new("RGB", (5000, 5000), 100), "WEBP", method=0), LARGE),
    "avif of 20 megapixels": (lambda: encode(Image.new("RGBA", (4500, 4500), 100), "AVIF", speed=10), PIXELS),
    "avif of 20 megapixels, 4:4:4": (
        lambda: encode(Image.new("RGBA", (4500, 4500), 100), "AVIF", speed=10, subsampling="4:4:4"),
        PIXELS,
    ),
    "heic of 48 megapixels": (lambda: heic(8064, 6048), PIXELS),
    "heic of 60 megapixels": (lambda: announced_heic(10_000, 6000), LARGE),
}
