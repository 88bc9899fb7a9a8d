"""Estimates the cost of decoding an upload from its header, so that cheap uploads don't wait for expensive ones.

An estimate is only of the right order of magnitude; the decoder checks the limits. It takes microseconds, on the event
loop.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vit_api.decoding.uploads import Pixels, Upload

# CPU seconds per megapixel on one core of the machine that the benchmarks ran on. A JPEG's depend on its scans.
_S_PER_MEGAPIXEL = {"PNG": 0.017, "WEBP": 0.032, "AVIF": 0.02, "HEIC": 0.015, "GIF": 0.01}
_S_PER_MEGAPIXEL_OF_OTHERS = 0.02
_JPEG_S_PER_MEGAPIXEL = 0.006
_S_PER_MIB = 0.01
_MAX_PIXELS = 1 << 27
# The maximum, from image_limits.MAX_CPU_S, and the fixed cost of any file.
_MAX_S = 5.0
_MIN_S = 0.0005
_BYTES_PER_PIXEL = {"WEBP": 17, "AVIF": 18, "HEIC": 8}
_OTHER_BYTES_PER_PIXEL = 6
_JPEG_BYTES_PER_PIXEL = 1  # scaled; more if it is progressive
_BOX_BYTES = 1 << 14
_FRAME_BYTES = 1 << 18


@dataclass(frozen=True)
class Cost:
    """The expected cost of decoding one upload.

    Attributes:
        cpu_s: CPU seconds.
        held_bytes: Memory.
    """

    cpu_s: float
    held_bytes: int


def estimate(upload: Upload) -> Cost:
    """Return the expected cost of decoding an upload; a corrupt file has some cost as well."""
    if isinstance(upload, Pixels):
        return Cost(_MIN_S, len(upload.data))
    try:
        name, width, height = _header(upload)
    except (struct.error, IndexError):
        name, width, height = "", 0, 0
    pixels = min(width * height, _MAX_PIXELS)
    megapixels = pixels / 1e6
    if name == "JPEG":
        scans = max(upload.count(b"\xff\xda"), 1)
        cpu_s = megapixels * _JPEG_S_PER_MEGAPIXEL * scans
        held_bytes = pixels * (_JPEG_BYTES_PER_PIXEL if scans == 1 else _OTHER_BYTES_PER_PIXEL)
    else:
        cpu_s = megapixels * _S_PER_MEGAPIXEL.get(name, _S_PER_MEGAPIXEL_OF_OTHERS)
        held_bytes = pixels * _BYTES_PER_PIXEL.get(name, _OTHER_BYTES_PER_PIXEL)
    cpu_s += len(upload) / 2**20 * _S_PER_MIB
    return Cost(min(max(cpu_s, _MIN_S), _MAX_S), held_bytes)


def _header(upload: bytes) -> tuple[str, int, int]:  # noqa: PLR0911
    """Return a format, width and height; zeros if the size can't be found quickly."""
    if upload.startswith(b"\x89PNG"):
        return "PNG", *struct.unpack_from(">II", upload, 16)
    if upload.startswith(b"GIF8"):
        return "GIF", *struct.unpack_from("<HH", upload, 6)
    if upload.startswith(b"BM"):
        width, height = struct.unpack_from("<ll", upload, 18)
        return "BMP", abs(width), abs(height)
    if upload[:4] == b"RIFF" and upload[8:12] == b"WEBP":
        return "WEBP", *_webp_size(upload)
    if upload[4:8] == b"ftyp":
        return _largest_box(upload)
    if upload[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF", *_tiff_size(upload)
    return "JPEG", *_jpeg_size(upload)


def _webp_size(upload: bytes) -> tuple[int, int]:
    kind = upload[12:16]
    if kind == b"VP8X":
        return int.from_bytes(upload[24:27], "little") + 1, int.from_bytes(upload[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(upload[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", upload, 26)
    return width & 0x3FFF, height & 0x3FFF


def _largest_box(upload: bytes) -> tuple[str, int, int]:
    """Return the largest picture of a file of boxes; the others may be thumbnails and tiles."""
    name = "AVIF" if upload[8:12] in (b"avif", b"avis") else "HEIC"
    largest, at = (0, 0), upload.find(b"ispe", 0, _BOX_BYTES)
    while 0 <= at <= _BOX_BYTES:
        size = struct.unpack_from(">II", upload, at + 8)
        largest = max(largest, size, key=lambda sides: sides[0] * sides[1])
        at = upload.find(b"ispe", at + 4, _BOX_BYTES)
    return name, *largest


def _tiff_size(upload: bytes) -> tuple[int, int]:
    order = "<" if upload[:1] == b"I" else ">"
    (at,) = struct.unpack_from(order + "L", upload, 4)
    (count,) = struct.unpack_from(order + "H", upload, at)
    sides = {256: 0, 257: 0}
    for number in range(min(count, 64)):
        tag, kind = struct.unpack_from(order + "HH", upload, at + 2 + 12 * number)
        if tag in sides:
            (sides[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "L"), upload, at + 10 + 12 * number)
    return sides[256], sides[257]


def _jpeg_size(upload: bytes) -> tuple[int, int]:
    """Return the sides of the first frame header; metadata before it may be long, and have thumbnails of its own."""
    at = upload.find(b"\xff\xd8") + 2
    while 2 <= at < _FRAME_BYTES:
        marker, length = struct.unpack_from(">HH", upload, at)
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            height, width = struct.unpack_from(">HH", upload, at + 5)
            return width, height
        if marker < 0xFF00 or length < 2:
            return 0, 0
        at += 2 + length
    return 0, 0
