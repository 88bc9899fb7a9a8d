"""The structure of a JPEG file: its declared contents, its cost, and the repairs that browsers make as well.

Knows no pixels.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vit_api.decoding.image_limits import TooComplex
from vit_api.decoding.other_formats import MAX_LEADING_BYTES
from vit_api.errors import UnsupportedImage

# Each scan of a progressive JPEG is a pass over the whole picture, but takes only 33 bytes in the file: 1,000 scans of
# 4096 x 4096 pixels take seconds. Encoders write about 10; libtiff, too, refuses more than 100.
MAX_SCANS = 100
USUAL_SCANS = 12
MAX_SCANNED_SAMPLES = 100 * 4096 * 4096
# PIL keeps a record of each segment, of which 10 MB can hold 2.6 million. An ICC profile of 10 MB has 160 segments.
MAX_SEGMENTS = 2_000
_MAX_PLAIN_SEGMENTS = 200

END = b"\xff\xd9"

_START = b"\xff\xd8"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_WITHOUT_LENGTH = frozenset([0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)])  # to PIL
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1
_JPEG_LS = 0xF7
_FRAMES = (frozenset(range(0xC0, 0xD0)) | {_JPEG_LS}) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset([0xC2, 0xCA])
_HIERARCHICAL = frozenset([0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF])
_OTHER_KINDS = {_JPEG_LS: "is a JPEG-LS", 0xCB: "is lossless with arithmetic coding"} | dict.fromkeys(
    _HIERARCHICAL, "is hierarchical"
)
_COEFFICIENT_BYTES = 2
_BITS = 8
_MARKER_START = 0xFF
_SEGMENTS = frozenset(range(0xC0, 0xFF)) - _WITHOUT_LENGTH - frozenset(range(0xD0, 0xD8))
_PLAIN_FRAMES = frozenset([0xC0, 0xC1])  # baseline and extended sequential, with Huffman coding
_SEGMENT = struct.Struct(">BBH")  # the marker, and the length of what follows it
_FRAME = struct.Struct(">BHHB")  # precision, height, width, components


@dataclass(frozen=True)
class JpegStructure:
    """The declared contents of a JPEG's first picture.

    Attributes:
        scans: Number of scans.
        samples: Samples of all components, after chroma subsampling.
        keeps_coefficients: Whether the decoder holds the whole picture's coefficients: it has several scans.
        has_end: Whether the last marker is there.
    """

    scans: int
    samples: int
    keeps_coefficients: bool
    has_end: bool

    @property
    def coefficient_bytes(self) -> int:
        """Memory for coefficients, whatever the size that the picture is scaled to."""
        return self.samples * _COEFFICIENT_BYTES if self.keeps_coefficients else 0


class PlainHeader(NamedTuple):
    """The header of a JPEG of grey or three colours in one scan, as cameras and browsers write it.

    Attributes:
        size: Width and height.
        components: Number of colour components: 1 or 3.
        metadata: The contents of its APP1 segments: EXIF data and XMP.
    """

    size: tuple[int, int]
    components: int
    metadata: list[bytes]


def plain_header(upload: bytes) -> PlainHeader | None:
    """Return the header of a JPEG whose segments follow each other up to a scan of all components; else None.

    What comes after it is not read: libjpeg, too, takes such a picture for complete after one scan, and refuses others.
    """
    size, components = (0, 0), 0
    metadata: list[bytes] = []
    for code, contents, end in _segments(upload):
        if code == _SCAN:
            is_plain = components in (1, 3) and upload[contents] == components and min(size) > 0
            return PlainHeader(size, components, metadata) if is_plain else None
        if code == _APP1:
            metadata.append(upload[contents:end])
        elif code in _FRAMES:
            if code not in _PLAIN_FRAMES or components or end - contents < _FRAME.size:
                return None
            precision, height, width, components = _FRAME.unpack_from(upload, contents)
            if precision != _BITS:
                return None
            size = width, height
    return None


def _segments(upload: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the code of each segment's marker, where its contents start and where they end.

    Stop at anything else, and after `_MAX_PLAIN_SEGMENTS`.
    """
    position = len(_START) if upload.startswith(_START) else len(upload)
    for _ in range(_MAX_PLAIN_SEGMENTS):
        if position + _SEGMENT.size >= len(upload):
            return
        start, code, length = _SEGMENT.unpack_from(upload, position)
        contents, position = position + _SEGMENT.size, position + 2 + length
        if start != _MARKER_START or code not in _SEGMENTS or not contents <= position <= len(upload):
            return
        yield code, contents, position


def noise(length: int) -> bytes:
    """Return bytes for the scans of a truncated JPEG to run into, at most 64 KiB; there is no marker among them."""
    return bytes(range(1, 255)) * (min(length, 1 << 16) // 254 + 1)


def without_leading_bytes(upload: bytes) -> bytes:
    """Drop what is before the first marker, and between it and the second; libjpeg skips only the latter."""
    start = upload.find(_START, 0, MAX_LEADING_BYTES)
    following = upload.find(b"\xff", start + 2, start + 2 + MAX_LEADING_BYTES)
    if start == 0 and following in (2, -1):
        return upload
    return _START + upload[following:] if following > 0 else upload[max(start, 0) :]


def read_structure(upload: bytes) -> JpegStructure:
    """Count the scans and segments of a JPEG's first picture in the way that libjpeg and PIL find them.

    Raises:
        TooComplex: There are too many.
        UnsupportedImage: The JPEG is of a kind that libjpeg does not read.
    """
    segments = scans = position = samples = components = components_of_scan = 0
    is_progressive = has_end = False
    while found := _MARKER.search(upload, position):
        position = found.end()
        code = upload[position - 1]
        if code == _END and scans:
            has_end = True
            break
        segments += 1
        if code in _FRAMES and not components:
            is_progressive = code in _PROGRESSIVE
            components, samples = _read_frame(code, upload[position : position + 2 + 6 + 3 * 4])
        if code == _SCAN:
            scans += 1
            components_of_scan = components_of_scan or int.from_bytes(upload[position + 2 : position + 3])
        is_long = scans > USUAL_SCANS and scans * samples > MAX_SCANNED_SAMPLES
        if scans > MAX_SCANS or segments > MAX_SEGMENTS or is_long:
            raise TooComplex(f"it has {scans} scans, {segments} segments")
        if code not in _WITHOUT_LENGTH:
            position += int.from_bytes(upload[position : position + 2], "big")
    keeps = is_progressive or components_of_scan < components
    return JpegStructure(scans, samples, keeps, has_end)


def _read_frame(code: int, header: bytes) -> tuple[int, int]:
    """Return the number of components and the samples of all of them.

    Args:
        code: The marker's code.
        header: The bytes after the marker: length, precision, height, width, components.
    """
    if len(header) < 8:
        return 0, 0
    precision, components = header[2], header[7]
    height, width = (int.from_bytes(header[at : at + 2], "big") for at in (3, 5))
    if precision != _BITS:
        raise UnsupportedImage(
            f"The JPEG has {precision} bits per sample, and only 8 are supported. Save it again, as PNG for example."
        )
    if code in _OTHER_KINDS or components not in (1, 3, 4):
        what = _OTHER_KINDS.get(code, f"has {components} components")
        raise UnsupportedImage(f"The JPEG {what}, which is not supported. Save it again, as PNG for example.")
    factors = [divmod(header[at], 16) for at in range(9, min(8 + 3 * components, len(header)), 3)]
    if not factors or not all(across and down for across, down in factors):
        return components, width * height * components
    most_across, most_down = max(across for across, _ in factors), max(down for _, down in factors)
    share = sum(across * down for across, down in factors) / (most_across * most_down)
    return components, int(width * height * share)
