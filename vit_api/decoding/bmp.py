"""The kinds of BMP that Pillow does not read: says what they are. Knows no pixels."""

from __future__ import annotations

import struct

_START = 14  # bytes of the file header
_LONG = struct.Struct("<LllHHL")  # size of the header, width, height, planes, bits, compression
_SHORT_HEADER, _LONG_HEADER = 12, 40
_MASKS = 3
_BITS = frozenset([1, 4, 8, 16, 24, 32])
_COMPRESSIONS = {4: "a JPEG", 5: "a PNG", 11: "CMYK", 12: "CMYK", 13: "CMYK"}
"""Of the header's field, what a program must know to read it; see `BI_JPEG` and the like in the Windows GDI."""


def kind_of(upload: bytes) -> str:
    """Describe a BMP that is not read; empty if its header does not say why."""
    try:
        size, _, _, _, bits, compression = _LONG.unpack_from(upload, _START)
    except struct.error:
        return ""
    if size < _LONG_HEADER:
        return "" if size == _SHORT_HEADER else f"with a header of {size} bytes"
    if compression in _COMPRESSIONS:
        return f"with {_COMPRESSIONS[compression]} in it"
    if bits not in _BITS:
        return f"with {bits} bits per pixel"
    if compression == _MASKS:
        return "with unusual colour masks"
    return f"with compression {compression}" if compression else ""
