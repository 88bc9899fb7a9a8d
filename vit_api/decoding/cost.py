"""Estimates the cost of decoding an upload from its header, so that cheap uploads don't wait for expensive ones.

An estimate is only of the right order of magnitude; the decoder checks the limits. It takes microseconds, on the event
loop.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vit_api.decoding.jpeg import MAX_SCANS, USUAL_SCANS, plain_header
from vit_api.decoding.other_formats import MAX_LEADING_BYTES
from vit_api.decoding.uploads import Pixels, Upload

# CPU seconds per megapixel on one core of the machine that the benchmarks ran on. A JPEG's depend on its scans.
_S_PER_MEGAPIXEL = {"PNG": 0.017, "WEBP": 0.032, "AVIF": 0.02, "HEIC": 0.015, "GIF": 0.01}
_S_PER_MEGAPIXEL_OF_OTHERS = 0.02
_JPEG_S_PER_MEGAPIXEL = 0.006
_S_PER_MIB = 0.01
# PIL decodes the runs of a BMP in Python.
_RUNS_S_PER_MIB = 0.6
_MAX_PIXELS = 1 << 27
# The maximum, from image_limits.MAX_CPU_S, and the fixed cost of any file.
_MAX_S = 5.0
_MIN_S = 0.0005
# Of an image whose size is not where it is quick to find: it waits with the large ones.
_UNKNOWN_PIXELS = 1 << 24
_BYTES_PER_PIXEL = {"WEBP": 17, "AVIF": 18, "HEIC": 8}
_OTHER_BYTES_PER_PIXEL = 6
_JPEG_BYTES_PER_PIXEL = 1  # scaled; more if it is progressive
_BOX_BYTES = 1 << 14
_FRAME_BYTES = 1 << 18
_COUNTED_BYTES = 1 << 20
_MAX_HEADER_SEGMENTS = 256
_MAX_TAGS = 64
_OS2_BYTES = 12
_GIF_EXTENSION, _GIF_FRAME = b"!,"
_MAX_GIF_BLOCKS = 64
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323
_INTEGERS = {3: "H", 4: "L", 16: "Q"}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_START, _SCAN = b"\xff\xd8", b"\xff\xda"
_IMAGES = (b"\x89PNG", b"GIF8", b"BM", b"RIFF", b"II", b"MM")


@dataclass(frozen=True)
class Cost:
    """The expected cost of decoding one upload.

    Attributes:
        cpu_s: CPU seconds.
        held_bytes: Memory.
        is_exclusive: Whether its decoder takes one file at a time, so that others would wait in their threads.
    """

    cpu_s: float
    held_bytes: int
    is_exclusive: bool = False


@dataclass(frozen=True)
class _Header:
    """What the first bytes of a file say.

    Attributes:
        name: The format.
        width: In pixels; 0 if it was not found.
        height: In pixels.
        scans: Number of passes over the picture.
        s_per_mib: CPU seconds for each MiB of the file.
    """

    name: str
    width: int = 0
    height: int = 0
    scans: int = 1
    s_per_mib: float = _S_PER_MIB


def estimate(upload: Upload) -> Cost:
    """Return the expected cost of decoding an upload; a corrupt file has some cost as well."""
    if isinstance(upload, Pixels):
        return Cost(_MIN_S, len(upload.data))
    try:
        header = _read_header(upload)
    except (struct.error, IndexError):
        header = _Header("" if upload.find(_JPEG_START, 0, 2) < 0 and not upload.startswith(_IMAGES) else "TIFF")
    if not header.name:
        return Cost(_MIN_S, len(upload))
    pixels = min(header.width * header.height, _MAX_PIXELS) or _UNKNOWN_PIXELS
    cpu_s = len(upload) / 2**20 * header.s_per_mib
    if header.name == "JPEG":
        cpu_s += pixels / 1e6 * _JPEG_S_PER_MEGAPIXEL * header.scans
        held_bytes = pixels * (_JPEG_BYTES_PER_PIXEL if header.scans == 1 else _OTHER_BYTES_PER_PIXEL)
    else:
        cpu_s += pixels / 1e6 * _S_PER_MEGAPIXEL.get(header.name, _S_PER_MEGAPIXEL_OF_OTHERS)
        held_bytes = pixels * _BYTES_PER_PIXEL.get(header.name, _OTHER_BYTES_PER_PIXEL)
    return Cost(min(max(cpu_s, _MIN_S), _MAX_S), held_bytes, header.name in ("AVIF", "HEIC"))


def _read_header(upload: bytes) -> _Header:  # noqa: PLR0911
    """Return what a file says of itself; without a name if it is no image, without a size if that is hard to find."""
    if upload.startswith(b"\x89PNG"):
        return _Header("PNG", *struct.unpack_from(">II", upload, 16))
    if upload.startswith(b"GIF8"):
        return _Header("GIF", *_gif_size(upload))
    if upload.startswith(b"BM"):
        return _bmp_header(upload)
    if upload[:4] == b"RIFF" and upload[8:12] == b"WEBP":
        return _Header("WEBP", *_webp_size(upload))
    if upload[4:8] == b"ftyp":
        return _largest_box(upload)
    if upload[:4] in _TIFF_STARTS:
        return _Header("TIFF", *_tiff_size(upload))
    if (plain := plain_header(upload)) is not None:
        return _Header("JPEG", *plain.size)
    start = upload.find(_JPEG_START, 0, MAX_LEADING_BYTES)
    return _Header("") if start < 0 else _jpeg_header(upload, start + 2)


def _gif_size(upload: bytes) -> tuple[int, int]:
    """Return the larger one of the screen and the first frame, which PIL allocates; zeros if much comes before it.

    PIL joins the blocks of a comment one by one, which can take seconds.
    """
    width, height = struct.unpack_from("<HH", upload, 6)
    at = 13 + (3 << (upload[10] & 7) + 1 if upload[10] & 0x80 else 0)
    is_in_extension = False
    for _ in range(_MAX_GIF_BLOCKS):
        first = upload[at]
        if is_in_extension:
            is_in_extension = first != 0
            at += 1 + first
        elif first == _GIF_EXTENSION:
            is_in_extension = True
            at += 2
        elif first == _GIF_FRAME:
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", upload, at + 1)
            return max(width, left + frame_width), max(height, top + frame_height)
        else:
            break
    return 0, 0


def _bmp_header(upload: bytes) -> _Header:
    (header_bytes,) = struct.unpack_from("<L", upload, 14)
    if header_bytes == _OS2_BYTES:
        return _Header("BMP", *struct.unpack_from("<HH", upload, 18))
    width, height = struct.unpack_from("<ll", upload, 18)
    has_runs = struct.unpack_from("<L", upload, 30)[0] in (1, 2)
    return _Header("BMP", abs(width), abs(height), s_per_mib=_RUNS_S_PER_MIB if has_runs else _S_PER_MIB)


def _webp_size(upload: bytes) -> tuple[int, int]:
    kind = upload[12:16]
    if kind == b"VP8X":
        return int.from_bytes(upload[24:27], "little") + 1, int.from_bytes(upload[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(upload[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", upload, 26)
    return width & 0x3FFF, height & 0x3FFF


def _largest_box(upload: bytes) -> _Header:
    """Return the largest picture of a file of boxes; the others may be thumbnails and tiles."""
    name = "AVIF" if upload[8:12] in (b"avif", b"avis") else "HEIC"
    largest, at = (0, 0), upload.find(b"ispe", 0, _BOX_BYTES)
    while 0 <= at <= _BOX_BYTES:
        size = struct.unpack_from(">II", upload, at + 8)
        largest = max(largest, size, key=lambda sides: sides[0] * sides[1])
        at = upload.find(b"ispe", at + 4, _BOX_BYTES)
    return _Header(name, *largest)


def _tiff_size(upload: bytes) -> tuple[int, int]:
    """Return the size of the first picture, or of a tile that is larger: the decoder decodes all of it."""
    order, is_big = "<" if upload[:1] == b"I" else ">", upload[2:4] in (b"+\0", b"\0+")
    (at,) = struct.unpack_from(order + ("Q" if is_big else "L"), upload, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), upload, at)
    start, size, value_at = (at + 8, 20, 12) if is_big else (at + 2, 12, 8)
    sides = dict.fromkeys((_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT), 0)
    for entry in range(start, start + size * min(count, _MAX_TAGS), size):
        tag, kind = struct.unpack_from(order + "HH", upload, entry)
        if tag in sides and kind in _INTEGERS:
            (value,) = struct.unpack_from(order + _INTEGERS[kind], upload, entry + value_at)
            sides[tag] = max(sides[tag], value)
    return max(sides[_WIDTH], sides[_TILE_WIDTH]), max(sides[_HEIGHT], sides[_TILE_HEIGHT])


def _jpeg_header(upload: bytes, at: int) -> _Header:
    """Return the size in the first frame header, and the scans of a JPEG that has several.

    Metadata before the frame may be long, and have thumbnails of its own.
    """
    width = height = components = 0
    is_progressive = False
    for _ in range(_MAX_HEADER_SEGMENTS):
        at = upload.find(b"\xff", at, at + MAX_LEADING_BYTES)
        if at < 0:
            break
        marker, length = struct.unpack_from(">HH", upload, at)
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC) and not components:
            height, width, components = struct.unpack_from(">HHB", upload, at + 5)
            is_progressive = marker in (0xFFC2, 0xFFCA)
        elif marker == 0xFFDA:
            # A picture whose first scan has all components is complete after it, unless it is progressive.
            is_whole = not is_progressive and upload[at + 4] >= components
            return _Header("JPEG", width, height, 1 if is_whole else _scans_from(upload, at))
        at += 1 if marker == 0xFFFF else 2 + max(length, 2) * (marker != 0xFF00)
    return _Header("JPEG", width, height, USUAL_SCANS)


def _scans_from(upload: bytes, at: int) -> int:
    """Return the number of scans; counting all of a long file's takes milliseconds, so of those it is a guess."""
    scans = upload.count(_SCAN, at, at + _COUNTED_BYTES)
    rest = len(upload) - at - _COUNTED_BYTES
    return min(scans if rest <= 0 else max(scans, USUAL_SCANS), MAX_SCANS)
