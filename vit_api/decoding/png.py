"""The chunks of a PNG file: keeps those that its first picture needs, as browsers do.

Knows no pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from vit_api.decoding.image_limits import TooComplex
from vit_api.decoding.other_formats import AS_PNG, unsupported

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 100_000
"""Encoders write 4 KB and more into a chunk; PIL's parser reads each of them in Python."""

CHUNK = struct.Struct(">I4s")  # length, name
CHECKSUM_BYTES = 4
_END = CHUNK.pack(0, b"IEND") + zlib.crc32(b"IEND").to_bytes(4, "big")
_PICTURE = frozenset([b"IHDR", b"PLTE", b"IDAT"])
_PALETTE_KIND, _KIND_AT = 3, 25
_BEFORE_DATA = frozenset([b"tRNS", b"eXIf"])
_FRAME_PARTS = frozenset([b"fcTL", b"IDAT", b"fdAT"])
_TEXTS = frozenset([b"tEXt", b"zTXt", b"iTXt"])
# Orientation may be in these texts. PIL unpacks up to 1 MiB of each before it complains.
_EXIF_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
_MAX_CANDIDATES = 4
_MAX_KEPT_BYTES = 1 << 16
_MAX_UNPACKED_BYTES = 1 << 20


def picture_only(upload: bytes) -> bytes:
    """Return a PNG without the chunks that don't change the pixels of its first picture.

    Text, colour profiles and the frames of an animation are skipped, not read. So is an ancillary chunk whose checksum
    is wrong, as libpng does. A palette that follows what refers to it is moved before it, and a missing end is added.

    Raises:
        TooComplex: It has too many chunks.
        UnsupportedImage: It is a variant of PNG that no browser reads.
        ValueError: Its palette is missing, without which PIL would show it black.
    """
    header: list[memoryview] = []
    data: list[memoryview] = []
    rest: list[memoryview] = []
    candidates = 0
    position, count, is_changed, has_end = len(SIGNATURE), 0, False, False
    view = memoryview(upload)
    while position + CHUNK.size <= len(upload):
        length, name = CHUNK.unpack_from(upload, position)
        end = position + CHUNK.size + length + CHECKSUM_BYTES
        count += 1
        if name == b"CgBI":
            raise unsupported("a PNG in Apple's own variant for apps (CgBI)", AS_PNG)
        if count > MAX_CHUNKS:
            raise TooComplex(f"it has more than {MAX_CHUNKS} chunks")
        if name == b"IEND":
            has_end = True
            break
        chunk = view[position:end]
        if name in _PICTURE:
            (data if name == b"IDAT" else header).append(chunk)
            is_changed |= name != b"IDAT" and bool(data or rest)
        elif candidates < _MAX_CANDIDATES and _is_candidate(name, chunk, length):
            candidates += 1
            is_intact = _is_intact(name, chunk)
            rest += [chunk] * is_intact
            is_changed |= bool(data) or not is_intact
        else:
            is_changed = True
        position = end
    if upload[_KIND_AT : _KIND_AT + 1] == bytes([_PALETTE_KIND]) and len(header) == 1:
        raise ValueError("The palette is missing.")
    if not is_changed and has_end:
        return upload
    is_cut = position > len(upload)  # within a chunk, which must not be filled up with others
    return b"".join([SIGNATURE, *header, *rest, *data, b"" if is_cut else _END])


def with_frames(upload: bytes) -> bytes:
    """Return an animated PNG with all its frames, and without what `picture_only` leaves out.

    The number of frames that it declares is replaced by the number that it has.

    Raises:
        TooComplex: It has too many chunks.
    """
    still = picture_only(upload)
    start = next((start for name, start, _ in chunks_of(still) if name == b"IDAT"), len(still)) - CHUNK.size
    view = memoryview(upload)
    parts = [(name, start, length) for name, start, length in chunks_of(upload) if name in _FRAME_PARTS]
    control = b"acTL" + struct.pack(">II", sum(name == b"fcTL" for name, _, _ in parts), 0)
    kept = [view[start - CHUNK.size : start + length + CHECKSUM_BYTES] for _, start, length in parts]
    declared = struct.pack(">I", len(control) - 4) + control + zlib.crc32(control).to_bytes(4, "big")
    return b"".join([memoryview(still)[:start], declared, *kept, _END])


def chunks_of(upload: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each chunk before IEND, and the position and length of its data.

    Raises:
        TooComplex: It has too many chunks.
    """
    position, count = len(SIGNATURE), 0
    while position + CHUNK.size <= len(upload):
        length, name = CHUNK.unpack_from(upload, position)
        count += 1
        if count > MAX_CHUNKS:
            raise TooComplex(f"it has more than {MAX_CHUNKS} chunks")
        if name == b"IEND":
            return
        yield name, position + CHUNK.size, length
        position += CHUNK.size + length + CHECKSUM_BYTES


def _is_candidate(name: bytes, chunk: memoryview, length: int) -> bool:
    """Return whether an ancillary chunk may say how the picture looks: transparency and orientation."""
    if name in _BEFORE_DATA:
        return True
    start = bytes(chunk[CHUNK.size : CHUNK.size + max(map(len, _EXIF_TEXTS))])
    return name in _TEXTS and length <= _MAX_KEPT_BYTES and start.startswith(_EXIF_TEXTS)


def _is_intact(name: bytes, chunk: memoryview) -> bool:
    """Return whether a chunk's checksum is right, and PIL would read its text."""
    if zlib.crc32(chunk[4:-4]).to_bytes(4, "big") != chunk[-4:]:
        return False
    _, _, value = bytes(chunk[CHUNK.size : -CHECKSUM_BYTES]).partition(b"\0")
    if name == b"iTXt":
        return value[:1] == b"\0"  # not compressed
    if name != b"zTXt":
        return True
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(value[1:], _MAX_UNPACKED_BYTES)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail
