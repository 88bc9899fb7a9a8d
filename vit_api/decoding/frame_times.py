"""Which frames an animation has, and when each is shown, read from the structure of its file.

Decodes no pixels. A file's own claims about its number of frames are not used where the frames can be counted.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from PIL import Image

from vit_api.decoding import heif
from vit_api.decoding.image_limits import TooComplex, UploadFile
from vit_api.decoding.png import SIGNATURE, chunks_of

MAX_FRAMES = 20_000
"""At about 0.2 ms a frame, besides its pixels, more would take most of the CPU time that an image may take."""

_MAX_GIF_BLOCKS = 1 << 20
"""Of at most 255 bytes each; encoders fill them, so an upload of 32 MiB has 131,072."""

# Browsers show a frame whose delay is 10 ms or less, which GIFs often have by mistake, for 100 ms.
_MIN_DELAY_MS = 10.0
_USUAL_DELAY_MS = 100.0

_GIF_BLOCK = re.compile(rb"[!,;]")
_GIF_CONTROL = 0xF9
_GIF_FRAME = struct.Struct("<HHHHB")  # left, top, width, height, flags
_HAS_PALETTE = 0x80
_WEBP_ANIMATED = 0x02
_APNG_DELAY = struct.Struct(">HH")  # numerator and denominator of seconds
_PNG_SIZE = struct.Struct(">II")
_REDUCED_OR_MASK = 0x01 | 0x04  # of a TIFF's NewSubfileType
_INTEGERS = {3: "H", 4: "L", 16: "Q"}  # SHORT, LONG, LONG8
_MAX_PAGES = 4096
_MAX_ENTRIES = 64  # they are sorted, and these are the first


@dataclass(frozen=True)
class FrameTimes:
    """The frames of an animation, or the pages of a document.

    Attributes:
        size: Width and height that decoding one takes.
        numbers: PIL's number of each frame.
        starts_ms: When each is shown, in milliseconds from the start; None for pages, which have no time.
    """

    size: tuple[int, int]
    numbers: Sequence[int]
    starts_ms: Sequence[float] | None


def read_frame_times(upload: bytes, format_name: str) -> FrameTimes | None:
    """Return the frames of a file; None for a still picture.

    Args:
        upload: The bytes of the file.
        format_name: One of `formats.FORMATS`.

    Raises:
        TooComplex: It has too many frames, or blocks.
        Exception: Whatever PIL's parsers run into.
    """
    read = _READERS.get(format_name)
    times = None if read is None else read(upload)
    return None if times is None or list(times.numbers) == [0] else times


def _starts(delays_ms: Iterable[float]) -> list[float]:
    shown_ms = [delay if delay > _MIN_DELAY_MS else _USUAL_DELAY_MS for delay in delays_ms]
    return list(accumulate(shown_ms[:-1], initial=0.0))


def _check_count(count: int) -> None:
    if count > MAX_FRAMES:
        raise TooComplex(f"it has more than {MAX_FRAMES} frames")


def _read_gif(upload: bytes) -> FrameTimes | None:
    width, height = struct.unpack_from("<HH", upload, 6)
    delays_ms: list[float] = []
    for left, top, frame_width, frame_height, delay_ms in _gif_frames(upload):
        delays_ms.append(delay_ms)
        _check_count(len(delays_ms))
        # PIL extends the canvas by a frame that is partly outside.
        width, height = max(width, left + frame_width), max(height, top + frame_height)
    return FrameTimes((width, height), range(len(delays_ms)), _starts(delays_ms)) if delays_ms else None


def _gif_frames(upload: bytes) -> Iterator[tuple[int, int, int, int, float]]:
    """Yield the box and the delay of each frame. The file may end within the last one, which its decoder then judges.

    Raises:
        IndexError: It ends within something else.
    """
    position, delay_ms, blocks = 13 + _palette_bytes(upload[10]), 0.0, 0
    while (found := _GIF_BLOCK.search(upload, position)) and found[0] != b";":
        position = found.end()
        is_frame = found[0] == b","
        if is_frame:
            left, top, width, height, flags = _GIF_FRAME.unpack_from(upload, position)
            yield left, top, width, height, delay_ms
            delay_ms = 0.0
            position += _GIF_FRAME.size + _palette_bytes(flags) + 1
        else:
            if upload[position] == _GIF_CONTROL:
                delay_ms = 10.0 * struct.unpack_from("<H", upload, position + 3)[0]
            position += 1
        try:
            while size := upload[position]:
                position += size + 1
                blocks += 1
                if blocks > _MAX_GIF_BLOCKS:
                    raise TooComplex(f"it has more than {_MAX_GIF_BLOCKS} blocks")
        except IndexError:
            if is_frame:
                return
            raise
        position += 1


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _HAS_PALETTE else 0


def _read_png(upload: bytes) -> FrameTimes | None:
    delays_ms: list[float] = []
    is_animated = has_data = has_hidden = False
    declared = 0
    for name, start, length in chunks_of(upload):
        if name == b"acTL" and not has_data:
            (declared,) = struct.unpack_from(">L", upload, start)
            is_animated = True
        elif name == b"IDAT":
            has_hidden |= not has_data and not delays_ms  # a picture for viewers that know no animations
            has_data = True
        elif name == b"fcTL" and length >= 26:
            numerator, denominator = _APNG_DELAY.unpack_from(upload, start + 20)
            delays_ms.append(1000 * numerator / (denominator or 100))
            _check_count(len(delays_ms))
    if not is_animated or not declared:
        return None
    if len(delays_ms) < declared:
        raise ValueError("The file ends before its last frame.")
    size = _PNG_SIZE.unpack_from(upload, len(SIGNATURE) + 8)
    return FrameTimes(size, range(has_hidden, len(delays_ms) + has_hidden), _starts(delays_ms))


def _read_webp(upload: bytes) -> FrameTimes | None:
    if upload[12:16] != b"VP8X" or not upload[20] & _WEBP_ANIMATED:
        return None
    size = (int.from_bytes(upload[24:27], "little") + 1, int.from_bytes(upload[27:30], "little") + 1)
    delays_ms: list[float] = []
    position = 12
    end = min(len(upload), 8 + int.from_bytes(upload[4:8], "little"))
    while position + 8 <= end:
        if upload[position : position + 4] == b"ANMF":
            delays_ms.append(int.from_bytes(upload[position + 20 : position + 23], "little"))
            _check_count(len(delays_ms))
        length = int.from_bytes(upload[position + 4 : position + 8], "little")
        position += 8 + length + length % 2
    return FrameTimes(size, range(len(delays_ms)), _starts(delays_ms)) if delays_ms else None


def _read_avif(upload: bytes) -> FrameTimes | None:
    with Image.open(UploadFile(upload), formats=["AVIF"]) as image:
        count, size = getattr(image, "n_frames", 1), image.size
    if count < 2:
        return None
    _check_count(count)
    delays_ms = _sample_delays(upload, count)
    return FrameTimes(size, range(count), None if len(delays_ms) < count else _starts(delays_ms))


def _sample_delays(upload: bytes, count: int) -> list[float]:
    """Return the delays of the first track's samples; see ISO/IEC 14496-12, 8.4.2 (mdhd) and 8.6.1.2 (stts)."""
    movie = upload.find(b"moov")
    media, table = upload.find(b"mdhd", movie), upload.find(b"stts", movie)
    if -1 in (movie, media, table):
        return []
    try:
        is_long = upload[media + 4] == 1
        (timescale,) = struct.unpack_from(">L", upload, media + (24 if is_long else 16))
        (entries,) = struct.unpack_from(">L", upload, table + 8)
        delays_ms: list[float] = []
        for entry in range(min(entries, count)):
            samples, delta = struct.unpack_from(">LL", upload, table + 12 + 8 * entry)
            delays_ms += [1000 * delta / timescale] * min(samples, count - len(delays_ms))
    except (struct.error, IndexError, ZeroDivisionError):
        return []
    return delays_ms


def _read_heic(upload: bytes) -> FrameTimes | None:
    with heif.open_heif(UploadFile(upload)) as image:
        count, size = getattr(image, "n_frames", 1), image.size
    _check_count(count)
    return FrameTimes(size, range(count), None)


def _read_tiff(upload: bytes) -> FrameTimes | None:
    """Return the pages of a TIFF, without smaller copies of them and masks."""
    numbers, sizes = [], []
    for number, (width, height, kind) in enumerate(_tiff_directories(upload)):
        if not kind & _REDUCED_OR_MASK or number == 0:
            numbers.append(number)
            sizes.append((width, height))
    return FrameTimes(max(sizes, key=lambda sides: sides[0] * sides[1]), numbers, None) if sizes else None


def _tiff_directories(upload: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the width, height and NewSubfileType of each directory."""
    order = "<" if upload[:1] == b"I" else ">"
    is_big = upload[2:4] in (b"+\0", b"\0+")
    entry = struct.Struct(order + ("HHQ8s" if is_big else "HHL4s"))
    counter, offset = (struct.Struct(order + code) for code in ("QQ" if is_big else "HL"))
    seen: set[int] = set()
    (position,) = offset.unpack_from(upload, 8 if is_big else 4)
    while position and position not in seen:
        if len(seen) >= _MAX_PAGES:
            raise TooComplex(f"it has more than {_MAX_PAGES} pages")
        seen.add(position)
        (count,) = counter.unpack_from(upload, position)
        start = position + counter.size
        (position,) = offset.unpack_from(upload, start + count * entry.size)
        values = {254: 0, 256: 0, 257: 0}
        for tag, kind, _, field in entry.iter_unpack(upload[start : start + min(count, _MAX_ENTRIES) * entry.size]):
            if tag in values:
                (values[tag],) = struct.unpack_from(order + _INTEGERS.get(kind, "L"), field)
        yield values[256], values[257], values[254]


_READERS: dict[str, Callable[[bytes], FrameTimes | None]] = {
    "GIF": _read_gif,
    "PNG": _read_png,
    "WEBP": _read_webp,
    "AVIF": _read_avif,
    "HEIC": _read_heic,
    "TIFF": _read_tiff,
}
