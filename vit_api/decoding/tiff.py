"""The kinds of TIFF: rejects those that are not supported, and converts deep samples to 8 bits as image viewers do.

PIL reads some kinds as numbers whose white it does not know, and converts them to black or white pictures.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from vit_api.decoding.other_formats import unsupported
from vit_api.errors import UnsupportedImage

_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT = 258, 259, 262, 277, 339
_SUBFILE_KIND, _MAKE, _SUB_DIRECTORIES, _DNG_VERSION = 254, 271, 330, 50706
_RAW_COMPRESSIONS = frozenset([32767, 32769, 32770, 34713, 65000, 65535])
_WHITE_IS_ZERO, _CFA, _LAB, _ICC_LAB, _LINEAR_RAW = 0, 32803, 8, 9, 34892
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_SAMPLE_FORMATS = {_UNSIGNED: "integers", _SIGNED: "signed integers", _FLOAT: "floating-point numbers"}
_COLOURS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB", 9: "ICC LAB"}
_NEEDED = frozenset([256, 257, _PHOTOMETRIC])  # width, height
_WITHOUT_CODEC = {34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 34712: "JPEG 2000"}
_MAX_ENTRIES = 4096
_SHORT, _LONG = 3, 4
_AS_8_BITS = "Save it as TIFF or PNG in RGB with 8 or 16 bits"


def refuse_raw(upload: bytes) -> None:
    """Reject a camera's RAW file: a TIFF whose first picture is only a thumbnail.

    Raises:
        UnsupportedImage: It is one.
    """
    if upload[8:10] == b"CR":
        raise unsupported("a camera's RAW file (CR2)", "Export it as JPEG or PNG")
    tags = _first_directory(upload)
    is_thumbnail = tags.get(_SUBFILE_KIND, 0) & 1 and _SUB_DIRECTORIES in tags and _MAKE in tags
    is_raw = tags.get(_COMPRESSION) in _RAW_COMPRESSIONS or tags.get(_PHOTOMETRIC) in (_CFA, _LINEAR_RAW)
    if _DNG_VERSION in tags or is_thumbnail or is_raw:
        name = "DNG" if _DNG_VERSION in tags else "NEF, ARW or the like"
        raise unsupported(f"a camera's RAW file ({name})", "Export it as JPEG or PNG")


def kind_of(upload: bytes) -> str:
    """Describe the first picture of a TIFF; empty if its directory is incomplete."""
    tags = _first_directory(upload)
    if not tags.keys() >= _NEEDED:
        return ""
    bands = tags.get(_SAMPLES, 1)
    bits = tags.get(_BITS, 1)
    samples = _SAMPLE_FORMATS.get(tags.get(_SAMPLE_FORMAT, 1), "numbers of an unknown kind")
    colours = _COLOURS.get(tags.get(_PHOTOMETRIC, -1), "unknown colours")
    kind = f"{colours} with {bands} band{'s' * (bands != 1)} of {bits}-bit {samples}"
    scheme = tags.get(_COMPRESSION, 1)
    if scheme not in TiffImagePlugin.COMPRESSION_INFO or scheme in _WITHOUT_CODEC:
        kind += f", compressed by {_WITHOUT_CODEC.get(scheme, f'scheme {scheme}')}"
    return kind + (", in a big-endian BigTIFF" if upload[:4] == b"MM\0+" else "")


def lacks_codec(upload: bytes) -> bool:
    """Return whether a TIFF is compressed in a way that PIL knows, but its libtiff may not."""
    return _first_directory(upload).get(_COMPRESSION) in _WITHOUT_CODEC


def not_read(kind: str) -> UnsupportedImage:
    """Return the error for a kind of TIFF that is valid, but not supported."""
    return UnsupportedImage(f"The TIFF image is of a kind that is not supported: {kind}. {_AS_8_BITS}.")


def refuse_kind(image: TiffImagePlugin.TiffImageFile, upload: bytes) -> None:
    """Reject kinds for which PIL has pixels, but not their colours.

    Raises:
        UnsupportedImage: It is one.
    """
    tags: Mapping[int, Any] = image.tag_v2
    bands = tags.get(_SAMPLES, 1)
    is_deep_planes = tags.get(284, 1) == 2 and bands > 1 and max(tags.get(_BITS, (1,))) > 8
    # PIL takes signed bytes for unsigned ones: what is -1 would be white.
    is_signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    if image.mode in ("I", "LAB") or is_deep_planes or is_signed:
        raise not_read(kind_of(upload) + " in separate planes" * is_deep_planes)


def is_inverted(image: Image.Image) -> bool:
    """Return whether white is zero in samples that PIL leaves as they are."""
    return isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def bits_of(image: Image.Image) -> int:
    """Return the bits of a sample of mode I;16."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(max(image.tag_v2.get(_BITS, (16,))))
    return 16


def float_to_grey(image: Image.Image) -> Image.Image:
    """Scale a picture of floating-point numbers to 8 bits.

    White is 1, as image editors write it, unless there are larger numbers; then it is 255.

    Raises:
        UnsupportedImage: The numbers are in neither range, so what is white is unknown.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):
        raise not_read(f"grey with floating-point numbers from {low:.4g} to {high:.4g}, and not from 0 to 1 or 255")
    scaled = np.multiply(values, 255 if high <= 1 else 1, dtype=np.float32)
    np.rint(scaled, out=scaled)
    grey = scaled.astype(np.uint8)
    return Image.fromarray(255 - grey if is_inverted(image) else grey)


def _first_directory(upload: bytes) -> dict[int, int]:
    """Return the tags of the first directory; of a value that is not an integer in the directory itself, 0.

    Of several values, such as the bits of each band, the first counts.
    """
    order = "<" if upload[:2] == b"II" else ">"
    is_big = upload[2:4] in (b"+\0", b"\0+")
    entry = struct.Struct(order + ("HHQ8s" if is_big else "HHL4s"))
    try:
        (at,) = struct.unpack_from(order + ("Q" if is_big else "L"), upload, 8 if is_big else 4)
        (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), upload, at)
        at += 8 if is_big else 2
        entries = upload[at : at + min(count, _MAX_ENTRIES) * entry.size]
    except (struct.error, OverflowError):  # an offset beyond 63 bits
        return {}
    tags = {}
    for tag, kind, values, field in entry.iter_unpack(entries[: len(entries) // entry.size * entry.size]):
        size = {_SHORT: 2, _LONG: 4}.get(kind, 0)
        if size and values * size > len(field):
            (offset,) = struct.unpack(order + ("Q" if is_big else "L"), field)
            field = upload[offset : offset + size]  # noqa: PLW2901
        tags[tag] = int.from_bytes(field[:size], "little" if order == "<" else "big")
    return tags
