"""Detects the format of an upload by its content; for formats that are not supported, says what to send instead.

Knows the first bytes of files, but nothing of their contents.
"""

from __future__ import annotations

import re
import struct

from vit_api.errors import UnsupportedImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC")

# Some cameras and scripts put a few bytes before a JPEG.
MAX_LEADING_BYTES = 1024

_TEXT_BYTES = 4096
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

_AS_PNG = "Export it as JPEG or PNG"
_RENDER = "Render it as PNG"
_FRAME = "Send a frame of it as JPEG or PNG"
_OTHERS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"%PDF-", "a PDF document", "Render a page of it as PNG"),
    (0, b"%!PS", "a PostScript file", _RENDER),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file", _RENDER),
    (0, b"8BPS", "a Photoshop document (PSD)", _AS_PNG),
    (0, b"gimp xcf", "a GIMP document (XCF)", _AS_PNG),
    (0, b"\xff\x0a", "a JPEG XL image", _AS_PNG),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image", _AS_PNG),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image", _AS_PNG),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image", _AS_PNG),
    (0, b"II\xbc", "a JPEG XR image", _AS_PNG),
    (0, b"FUJIFILMCCD-RAW", "a camera's RAW file (RAF)", _AS_PNG),
    (0, b"IIRO", "a camera's RAW file (ORF)", _AS_PNG),
    (0, b"IIRS", "a camera's RAW file (ORF)", _AS_PNG),
    (0, b"MMOR", "a camera's RAW file (ORF)", _AS_PNG),
    (0, b"IIU\0", "a camera's RAW file (RW2)", _AS_PNG),
    (0, b"FOVb", "a camera's RAW file (X3F)", _AS_PNG),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video", _FRAME),
    (0, b"FLV\x01", "a Flash video", _FRAME),
    (0, b"OggS", "an Ogg video or sound", _FRAME),
    (0, b"\0\0\x01\xba", "an MPEG video", _FRAME),
    (0, b"\0\0\x01\xb3", "an MPEG video", _FRAME),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media video", _FRAME),
    (8, b"AVI ", "an AVI video", _FRAME),
    (4, b"moov", "a QuickTime video", _FRAME),
    (4, b"mdat", "a QuickTime video", _FRAME),
    (0, b"icns", "an icon (ICNS)", _AS_PNG),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image", _AS_PNG),
    (0, b"#?RADIANCE", "a Radiance HDR image", _AS_PNG),
    (0, b"qoif", "a QOI image", _AS_PNG),
    (0, b"DDS ", "a DirectDraw surface (DDS)", _AS_PNG),
    (0, b"PK\x03\x04", "a ZIP archive or an office document", "Send the image in it"),
    (0, b"Rar!", "a RAR archive", "Send the image in it"),
    (0, b"\x1f\x8b", "a gzip file", "Send the image in it"),
    (128, b"DICM", "a DICOM file", _AS_PNG),
)
_ICON = re.compile(rb"\0\0[\x01\x02]\0[^\0]\0", re.DOTALL)
_TARGA_END = b"TRUEVISION-XFILE.\0"
_PNM = re.compile(rb"P[1-7fF][\s#]")
_SVG = re.compile(rb"<(?:[a-z]+:)?svg[\s>]", re.IGNORECASE)
_HTML = re.compile(rb"<(?:!doctype html|html|head|body)[\s>]", re.IGNORECASE)
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
    _refuse_known(upload)
    if upload.find(b"\xff\xd8\xff", 0, MAX_LEADING_BYTES) > 0:
        return "JPEG"
    raise UnsupportedImage(f"The upload is not an image in a supported format: send one of {', '.join(FORMATS)}.")


def unsupported(what: str, advice: str) -> UnsupportedImage:
    """Return the error for a format that is recognised, but not read."""
    return UnsupportedImage(f"The upload is {what}, which is not supported. {advice}.")


def _of_brands(upload: bytes) -> str:
    """Distinguish AVIF, HEIC and videos by the brands that a file of boxes declares."""
    (size,) = struct.unpack_from(">I", upload)
    ends = min(size, len(upload), 16 + 4 * _MAX_BRANDS)
    major = upload[8:12]
    brands = {major, *(upload[at : at + 4] for at in range(16, ends - 3, 4))}
    if major in _AVIF_BRANDS | _HEVC_BRANDS:
        return "AVIF" if major in _AVIF_BRANDS else "HEIC"
    if major == b"crx ":
        raise unsupported("a camera's RAW file (CR3)", _AS_PNG)
    if brands & _AVIF_BRANDS and not brands & _HEVC_BRANDS:
        return "AVIF"
    if brands & _HEVC_BRANDS and not brands & _AVIF_BRANDS:
        return "HEIC"
    if brands & _HEIF_BRANDS:  # neither is declared, or both are: the codec of the pictures decides
        return "AVIF" if b"av01" in upload[:_META_BYTES] and b"hvc1" not in upload[:_META_BYTES] else "HEIC"
    if any(map(_VIDEO_BRANDS.fullmatch, brands)):
        raise unsupported("a video", _FRAME)
    raise unsupported(f"a media file of the brand {major.decode('latin-1')!r}", _AS_PNG)


def _refuse_known(upload: bytes) -> None:
    """Raise UnsupportedImage for a format that is known."""
    for offset, signature, what, advice in _OTHERS:
        if upload.startswith(signature, offset):
            raise unsupported(what, advice)
    if _ICON.match(upload):
        raise unsupported("an icon (ICO or CUR)", _AS_PNG)
    if upload.endswith(_TARGA_END):
        raise unsupported("a Targa image (TGA)", _AS_PNG)
    if _PNM.match(upload):
        raise unsupported("a PNM image", _AS_PNG)
    if len(upload) > 376 and upload[0] == upload[188] == upload[376] == 0x47:
        raise unsupported("an MPEG video", _FRAME)
    text = upload[:_TEXT_BYTES]
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = text[2:].replace(b"\0", b"")  # UTF-16
    if _SVG.search(text) and text.lstrip()[:1] in (b"<", b"\xef"):
        raise unsupported("an SVG drawing", _RENDER)
    if _HTML.search(text):
        raise unsupported("a web page (HTML)", "Send the image itself, not the page that shows it")
