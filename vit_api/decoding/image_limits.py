"""Limits on the time and memory that a hostile image file can make PIL spend besides decoding its pixels.

Knows the structure of the files, but not what their pixels are for. tests/support/hostile_files.py builds the files
that the comments describe, each of at most 10 MB, and tests/unit/decoding/test_hostile_images.py checks their cost.
"""

from __future__ import annotations

import io
import math
import re
import struct
import time
from typing import IO

from PIL import Image, TiffImagePlugin

from vit_api.errors import BadImage

# PIL's parsers read chunk by chunk, some of them byte by byte, and some of their work between two reads grows with the
# file. Without this limit, a GIF comment in blocks of one byte (each of which copies the comment so far), or a PNG of
# 10,000 colour profiles of 1 MB each, takes more than 20 s of CPU time; a legitimate image of 4096 x 4096, about 1 s.
MAX_CPU_S = 5.0
_READS_PER_CLOCK = 64

# For a directory of TIFF tags, which EXIF data and the index of an MPO are, too. Tags may share their bytes, which PIL
# copies for each: 300 tags that share 9 MB take gigabytes. Numbers become Python objects: 500 tags that share 64 kB of
# fractions take hundreds of megabytes. A legitimate image of 4096 x 4096 in tiles of 16 x 16 needs 131,072 numbers.
MAX_TAGS = 4_096
MAX_TAG_NUMBERS = 1 << 18
_SHARED_BYTES = 1 << 16
# libtiff decodes whole tiles, however little of them is in the picture: one of 32768 x 32768 takes 1 GB.
MAX_TILE_PIXELS = 1 << 24

_GIF_BLOCK = re.compile(rb"[!,;]")
_GIF_FRAME = struct.Struct("<HHHH")  # left, top, width, height
_TILE_TAGS = (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
_INTEGER_BYTES = {3: 2, 4: 4, 16: 8}  # SHORT, LONG, LONG8
_BYTE_KINDS = (1, 2, 7)  # BYTE, ASCII, UNDEFINED
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_CHUNK = struct.Struct(">I4s")  # length, name
_PNG_SIZE = struct.Struct(">II")  # width, height: the first fields of IHDR
_PNG_CHECKSUM_BYTES = 4
_PLAIN_CHUNKS = frozenset([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"sBIT"])
_MIN_PNG_BYTES = 57  # the signature, an IHDR of 25 bytes, an empty IDAT and an IEND
_MAX_QUICK_BYTES = 16_384
_MAX_QUICK_PIXELS = 128 * 128
_EXIF_PREFIXES = re.compile(rb"(?:Exif\0\0)*")


class TooComplex(ValueError):
    """Decoding an image would exceed a limit; the message says what it has too much of.

    A ValueError, so that PIL ignores optional metadata that is refused, as it does if that is malformed.
    """


class UploadFile(io.BytesIO):
    """An upload as a file; reading it fails once the reading thread has spent MAX_CPU_S of CPU time.

    The time is checked only every 64 reads, since that is a system call; most images need fewer reads.
    """

    def __init__(self, upload: bytes) -> None:
        super().__init__(upload)
        self._reads = 0
        self._end_s = math.inf

    def read(self, size: int | None = -1, /) -> bytes:
        """Read from the file.

        Raises:
            BadImage: The CPU time is used up.
        """
        self._reads += 1
        if self._reads % _READS_PER_CLOCK == 0:
            self._check_time()
        return super().read(size)

    def _check_time(self) -> None:
        now_s = time.thread_time()
        self._end_s = min(self._end_s, now_s + MAX_CPU_S)
        if now_s > self._end_s:
            raise BadImage(
                f"The image is too complex: decoding it takes more than {MAX_CPU_S:g} s of CPU time. "
                "Save it again, as PNG for example."
            )


def is_quick(upload: bytes) -> bool:
    """Return whether an upload is a small PNG of nothing but pixels, which takes a fraction of a millisecond to decode.

    Other chunks may hold megabytes of compressed text or a colour profile. A malformed file is not quick either.
    """
    if not _MIN_PNG_BYTES <= len(upload) <= _MAX_QUICK_BYTES or not upload.startswith(_PNG_START):
        return False
    width, height = _PNG_SIZE.unpack_from(upload, len(_PNG_START))
    if width * height > _MAX_QUICK_PIXELS:
        return False
    position = len(_PNG_START) - _PNG_CHUNK.size
    while position + _PNG_CHUNK.size <= len(upload):
        length, name = _PNG_CHUNK.unpack_from(upload, position)
        if name not in _PLAIN_CHUNKS:
            return False
        if name == b"IEND":
            return True
        position += _PNG_CHUNK.size + length + _PNG_CHECKSUM_BYTES
    return False


def gif_extent(upload: bytes) -> tuple[int, int]:
    """Return how far a GIF's first frame extends, which PIL allocates before it reports the size.

    A file of 40 bytes can have a frame of 40000 x 40000, which takes 1.5 GB.

    Raises:
        IndexError: The file ends before the first frame.
    """
    flags = upload[10]
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while (found := _GIF_BLOCK.search(upload, position)) and found[0] != b";":
        position = found.end()
        if found[0] == b",":
            left, top, width, height = _GIF_FRAME.unpack_from(upload, position)
            return left + width, top + height
        position += 1
        while size := upload[position]:
            position += size + 1
        position += 1
    return 0, 0


def bound_directories() -> None:
    """Patch PIL, for the whole process, to check each directory of tags (TIFF, EXIF, MPO) before reading it."""
    directories, exif = TiffImagePlugin.ImageFileDirectory_v2, Image.Exif
    load_directory, load_exif = directories.load, exif.load

    def load_checked(self: TiffImagePlugin.ImageFileDirectory_v2, fp: IO[bytes]) -> None:
        _check_directory(fp, is_big=self._bigtiff, endian=self._endian)
        load_directory(self, fp)

    def load_without_prefixes(self: Image.Exif, data: bytes) -> None:
        # PIL removes one prefix at a time and copies the rest each time: 10 MB of them take more than 20 s.
        prefixes = _EXIF_PREFIXES.match(data or b"")
        load_exif(self, data[prefixes.end() :] if prefixes else data)

    directories.load = load_checked  # type: ignore[method-assign]
    exif.load = load_without_prefixes  # type: ignore[method-assign]


def _check_directory(file: IO[bytes], *, is_big: bool, endian: str) -> None:
    """Add up what PIL would keep of the directory at the file's position, which stays as it is.

    Raises:
        TooComplex: It is too much.
    """
    start = file.tell()
    length = file.seek(0, io.SEEK_END)
    file.seek(start)
    order = "<" if endian == "<" else ">"
    entry = struct.Struct(order + ("HHQ8s" if is_big else "HHL4s"))
    tags = _integer(file.read(8 if is_big else 2), order)
    if tags > MAX_TAGS:
        raise TooComplex(f"it has {tags} tags, and at most {MAX_TAGS} are read")
    entries = file.read(tags * entry.size)
    file.seek(start)
    held_bytes = numbers = 0
    tile_sides = dict.fromkeys(_TILE_TAGS, 0)
    for tag, kind, count, field in entry.iter_unpack(entries[: len(entries) // entry.size * entry.size]):
        if tag in tile_sides:
            # Of a duplicate tag the larger value counts, since PIL and libtiff use different ones.
            tile_sides[tag] = max(tile_sides[tag], _integer(field[: _INTEGER_BYTES[kind]], order))
        if kind not in TiffImagePlugin.ImageFileDirectory_v2._load_dispatch:
            continue
        size = count * TiffImagePlugin.ImageFileDirectory_v2._load_dispatch[kind][0]
        if size > len(field) and _integer(field, order) + size > length:
            break  # PIL stops at a value that is not there, and keeps what it has read
        held_bytes += size
        numbers += 0 if kind in _BYTE_KINDS else count
    if held_bytes > 2 * length + _SHARED_BYTES or numbers > MAX_TAG_NUMBERS:
        raise TooComplex(f"its tags have {held_bytes} bytes and {numbers} numbers, which is too much for its size")
    width, height = tile_sides.values()
    if width * height > MAX_TILE_PIXELS:
        raise TooComplex(f"its tiles are {width} x {height} pixels, and at most {MAX_TILE_PIXELS} pixels are read")


def _integer(data: bytes, order: str) -> int:
    return int.from_bytes(data, "little" if order == "<" else "big")
