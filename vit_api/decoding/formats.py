"""Detects the format of an upload by its content; for formats that are not supported, says what to send instead.

Knows the first bytes of files, but nothing of their contents.
"""

from __future__ import annotations

import re
import struct

from vit_api.decoding.other_formats import AS_PNG, FRAME, MAX_LEADING_BYTES, refuse_known, unsupported
from vit_api.errors import UnsupportedImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC")


_MAX_BRANDS = 64
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"\xff\xd8", "JPEG"),
)
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_HEVC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"mif1", b"mif2", b"msf1", b"miaf"}
_META_BYTES = 1 << 16

_VIDEO_BRANDS = re.compile(rb"isom|iso[2-9]|mp4[12]|avc1|M4[VA] |qt  |3g[p2].|MSNV|dash|f4v |mmp4")


def identify(upload: bytes) -> str:
    """Return the name of the upload's format, one of FORMATS.

    Raises:
        UnsupportedImage: It is in none of them; the message says what it is, if that is known, and what to send.
    """
    start = upload[:32]
    for signature, name in _SIGNATURES:
        if start.startswith(signature):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:4] in _TIFF_STARTS:
        return "TIFF"
    if start[4:8] == b"ftyp":
        return _of_brands(upload)
    refuse_known(upload)
    if upload.find(b"\xff\xd8\xff", 0, MAX_LEADING_BYTES) > 0:
        return "JPEG"
    raise UnsupportedImage(f"The upload is not an image in a supported format: send one of {', '.join(FORMATS)}.")


def _of_brands(upload: bytes) -> str:
    """Distinguish AVIF, HEIC and videos by the brands that a file of boxes declares."""
    (size,) = struct.unpack_from(">I", upload)
    ends = min(size, len(upload), 16 + 4 * _MAX_BRANDS)
    major = upload[8:12]
    brands = {major, *(upload[at : at + 4] for at in range(16, ends - 3, 4))}
    if major in _AVIF_BRANDS | _HEVC_BRANDS:
        return "AVIF" if major in _AVIF_BRANDS else "HEIC"
    if major == b"crx ":
        raise unsupported("a camera's RAW file (CR3)", AS_PNG)
    if brands & _AVIF_BRANDS and not brands & _HEVC_BRANDS:
        return "AVIF"
    if brands & _HEVC_BRANDS and not brands & _AVIF_BRANDS:
        return "HEIC"
    if brands & _HEIF_BRANDS:  # neither is declared, or both are: the codec of the pictures decides
        return "AVIF" if b"av01" in upload[:_META_BYTES] and b"hvc1" not in upload[:_META_BYTES] else "HEIC"
    if any(map(_VIDEO_BRANDS.fullmatch, brands)):
        raise unsupported("a video", FRAME)
    raise unsupported(f"a media file of the brand {major.decode('latin-1')!r}", AS_PNG)
