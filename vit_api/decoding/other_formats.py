"""Formats that are recognised, but not read: what each is called, and what to send instead.

Knows only the first bytes of files.
"""

from __future__ import annotations

import re
import zlib

from vit_api.errors import UnsupportedImage

# Some cameras and scripts put a few bytes before a JPEG.
MAX_LEADING_BYTES = 1024
_TEXT_BYTES = 4096
AS_PNG = "Export it as JPEG or PNG"
_UNPACK = "Send the image in it"
_GZIP = b"\x1f\x8b"
_RENDER = "Render it as PNG"
FRAME = "Send a frame of it as JPEG or PNG"
_OTHERS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"%PDF-", "a PDF document", "Render a page of it as PNG"),
    (0, b"%!PS", "a PostScript file", _RENDER),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file", _RENDER),
    (0, b"8BPS", "a Photoshop document (PSD)", AS_PNG),
    (0, b"gimp xcf", "a GIMP document (XCF)", AS_PNG),
    (0, b"\xff\x0a", "a JPEG XL image", AS_PNG),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image", AS_PNG),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image", AS_PNG),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image", AS_PNG),
    (0, b"II\xbc", "a JPEG XR image", AS_PNG),
    (0, b"FUJIFILMCCD-RAW", "a camera's RAW file (RAF)", AS_PNG),
    (0, b"IIRO", "a camera's RAW file (ORF)", AS_PNG),
    (0, b"IIRS", "a camera's RAW file (ORF)", AS_PNG),
    (0, b"MMOR", "a camera's RAW file (ORF)", AS_PNG),
    (0, b"IIU\0", "a camera's RAW file (RW2)", AS_PNG),
    (0, b"FOVb", "a camera's RAW file (X3F)", AS_PNG),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video", FRAME),
    (0, b"FLV\x01", "a Flash video", FRAME),
    (0, b"OggS", "an Ogg video or sound", FRAME),
    (0, b"\0\0\x01\xba", "an MPEG video", FRAME),
    (0, b"\0\0\x01\xb3", "an MPEG video", FRAME),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media video", FRAME),
    (8, b"AVI ", "an AVI video", FRAME),
    (4, b"moov", "a QuickTime video", FRAME),
    (4, b"mdat", "a QuickTime video", FRAME),
    (0, b"icns", "an icon (ICNS)", AS_PNG),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image", AS_PNG),
    (0, b"#?RADIANCE", "a Radiance HDR image", AS_PNG),
    (0, b"qoif", "a QOI image", AS_PNG),
    (0, b"DDS ", "a DirectDraw surface (DDS)", AS_PNG),
    (0, b"PK\x03\x04", "a ZIP archive or an office document", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (0, _GZIP, "a gzip file", _UNPACK),
    (0, b"\x8aMNG\r\n\x1a\n", "an MNG animation", AS_PNG),
    (0, b"\x8bJNG\r\n\x1a\n", "a JNG image", AS_PNG),
    (0, b"\x89PNG\n", "a PNG whose line ends were converted as in a text", "Copy it as a binary file"),
    (0, b"\0\0\0\x0cJXS \r\n\x87\n", "a JPEG XS image", AS_PNG),
    (0, b"#?RGBE", "a Radiance HDR image", AS_PNG),
    (0, b"AT&TFORM", "a DjVu document", "Render a page of it as PNG"),
    (0, b"BPG\xfb", "a BPG image", AS_PNG),
    (0, b"FLIF", "a FLIF image", AS_PNG),
    (0, b"BA", "an OS/2 bitmap array", AS_PNG),
    (0, b"\xabKTX ", "a KTX texture", AS_PNG),
    (0, b"SIMPLE  =", "a FITS file", AS_PNG),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)", _RENDER),
    (40, b" EMF", "a Windows metafile (EMF)", _RENDER),
    (8, b"WAVE", "a sound file", "Send an image"),
    (0, b"ID3", "a sound file", "Send an image"),
    (0, b"fLaC", "a sound file", "Send an image"),
    (8, b"ACON", "an animated cursor", AS_PNG),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\xfd7zXZ\0", "an xz file", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file", _UNPACK),
    (0, b"BZh", "a bzip2 file", _UNPACK),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an office document", _UNPACK),
    (0, b"\x93NUMPY", "a NumPy array", "Save it as PNG"),
    (0, b"\x06\x06\xed\xf5\xd8\x1d\x46\xe5", "an InDesign document", AS_PNG),
    (0, b"MZ", "a program", "Send an image"),
    (0, b"\x7fELF", "a program", "Send an image"),
    (128, b"DICM", "a DICOM file", AS_PNG),
    (0, b"\x01\xda\0", "an SGI image", AS_PNG),
    (0, b"\x01\xda\1", "an SGI image", AS_PNG),
    (0, b"\x59\xa6\x6a\x95", "a Sun raster image", AS_PNG),
    (0, b"SDPX", "a DPX image", AS_PNG),
    (0, b"XPDS", "a DPX image", AS_PNG),
    (0, b"\x80\x2a\x5f\xd7", "a Cineon image", AS_PNG),
    (0, b"id=ImageMagick", "an ImageMagick image (MIFF)", AS_PNG),
    (0, b"\x08\xf2\xa6\xb6", "a VIPS image", AS_PNG),
    (0, b"\xb6\xa6\xf2\x08", "a VIPS image", AS_PNG),
    (0, b"LBLSIZE=", "a VICAR image", AS_PNG),
    (0, b"\xab\x01", "a Khoros image (VIFF)", AS_PNG),
    (0, b"farbfeld", "a farbfeld image", AS_PNG),
    (0, b"Image type:", "an IFUNC image (IM)", AS_PNG),
    (0, b"DanM", "a Microsoft Paint image (MSP)", AS_PNG),
    (0, b"LinS", "a Microsoft Paint image (MSP)", AS_PNG),
    (0, b"BLP1", "a Blizzard texture (BLP)", AS_PNG),
    (0, b"BLP2", "a Blizzard texture (BLP)", AS_PNG),
    (0, b"VTF\0", "a Valve texture (VTF)", AS_PNG),
    (0, b"\x13\xab\xa1\x5c", "an ASTC texture", AS_PNG),
    (0, b"PVR\3", "a PowerVR texture (PVR)", AS_PNG),
    (0, b"\x97JB2\r\n\x1a\n", "a JBIG2 image", AS_PNG),
    (0, b"\x1bP", "a Sixel image", AS_PNG),
    (0, b"/* XPM", "an X11 pixmap (XPM)", AS_PNG),
    (522, b"\0\x11\2\xff", "a PICT drawing", _RENDER),
    (0, b"FORM", "an IFF file", AS_PNG),
    (0, b"FWS", "a Flash film", FRAME),
    (0, b"CWS", "a Flash film", FRAME),
    (0, b"\0\5\x16\7", "what macOS stores beside a file (AppleDouble, ._*)", "Send the file without ._ in its name"),
    (0, b"\0\5\x16\0", "what macOS stores beside a file (AppleSingle)", "Send the image itself"),
    (0, b"bplist00", "a property list", "Send an image"),
    (0, b"SQLite format 3\0", "a database", "Send an image"),
    (0, b"\x89HDF", "an HDF5 file", "Save a picture of it as PNG"),
    (0, b"\xff\xfb", "a sound file", "Send an image"),
    (0, b"\xff\xf1", "a sound file", "Send an image"),
    (0, b"RIFX", "a RIFF file", "Send an image"),
    (0, b"wOF", "a font", "Send an image"),
    (0, b"OTTO", "a font", "Send an image"),
)
_X11 = re.compile(rb"#define \S+_width \d")
_X11_DUMP = re.compile(rb"\0\0..\0{3}\x07\0{3}[\0-\2]", re.DOTALL)
_ICON = re.compile(rb"\0\0[\x01\x02]\0[^\0]\0", re.DOTALL)
_TARGA_END = b"TRUEVISION-XFILE.\0"
_PNM = re.compile(rb"P[1-7fF][\s#]")
_SVG = re.compile(rb"<(?:[a-z]+:)?svg[\s>/]", re.IGNORECASE)
_HTML = re.compile(rb"<(?:!doctype html|html|head|body)[\s>]", re.IGNORECASE)
_PCX = re.compile(rb"\x0a[\0\2-\5]\x01[\1\2\4\x08]")
_TARGA = re.compile(rb".[\0\1][\1-\3\x09-\x0b].{5}.{4}(?!\0\0)..(?!\0\0)..[\x08\x0f\x10\x18\x20][\0-\x3f]", re.DOTALL)
_DIB = re.compile(rb"[\x28\x6c\x7c]\0{3}.{8}\x01\0[\x01\x04\x08\x10\x18\x20]\0", re.DOTALL)
_XML = re.compile(rb"\s*<(?:\?xml|!doctype|!--|[a-z])", re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\s-]{64,}={0,2}\s*")
_FILE_NAME = re.compile(rb"(?:[A-Za-z]:)?[^\r\n:]{1,255}\.(?:jpe?g|png|gif|webp|bmp|tiff?|heic|avif)\s*", re.IGNORECASE)
_URL = re.compile(rb"https?://\S+\s*", re.IGNORECASE)
_CONTROL = re.compile(rb"[\0-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_STARTS = (
    (_ICON, "an icon (ICO or CUR)"),
    (_X11, "an X11 bitmap (XBM)"),
    (_X11_DUMP, "an X11 window dump (XWD)"),
    (_PNM, "a PNM image"),
)
_HEADERS = ((_PCX, "a PCX image"), (_DIB, "a bitmap without its file header (DIB)"), (_TARGA, "a Targa image (TGA)"))
_MAX_COMMENT_BYTES = 1 << 16
_PDF_BYTES = 1024  # readers search so far for the start
_MIN_TEXT_BYTES = 4


def unsupported(what: str, advice: str) -> UnsupportedImage:
    """Return the error for a format that is recognised, but not read."""
    return UnsupportedImage(f"The upload is {what}, which is not supported. {advice}.")


def refuse_known(upload: bytes) -> None:
    """Raise UnsupportedImage for a format that is known."""
    if upload.startswith(_GZIP) and _SVG.search(_unpacked(upload)):
        raise unsupported("a compressed SVG drawing (SVGZ)", _RENDER)
    for offset, signature, what, advice in _OTHERS:
        if upload.startswith(signature, offset):
            raise unsupported(what, advice)
    for pattern, what in _STARTS:
        if pattern.match(upload):
            raise unsupported(what, AS_PNG)
    if upload.endswith(_TARGA_END):
        raise unsupported("a Targa image (TGA)", AS_PNG)
    if b"%PDF-" in upload[:_PDF_BYTES]:
        raise unsupported("a PDF document", "Render a page of it as PNG")
    if len(upload) > 376 and upload[0] == upload[188] == upload[376] == 0x47:
        raise unsupported("an MPEG video", FRAME)
    _refuse_text(upload)
    if b"\xff\xd8\xff" in upload[:MAX_LEADING_BYTES]:
        return
    for pattern, what in _HEADERS:
        if pattern.match(upload):
            raise unsupported(what, AS_PNG)


def _refuse_text(upload: bytes) -> None:
    """Raise UnsupportedImage for texts: drawings, pages, and images that were encoded as text."""
    text = upload[:_TEXT_BYTES]
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = text[2:].replace(b"\0", b"")  # UTF-16
    text = text.removeprefix(b"\xef\xbb\xbf").lstrip()
    if len(text) < _MIN_TEXT_BYTES or _CONTROL.search(text):
        return
    if text[:1] == b"<" and (_SVG.search(text) or _SVG.search(upload, len(text), _MAX_COMMENT_BYTES)):
        raise unsupported("an SVG drawing", _RENDER)
    if _HTML.search(text):
        raise unsupported("a web page (HTML)", "Send the image itself, not the page that shows it")
    if text[:5].lower() == b"data:" or _BASE64.fullmatch(text):
        raise unsupported("base64 text", 'Send the bytes of the image, or JSON: {"image": "<base64>"}')
    if _XML.match(text):
        raise unsupported("an XML or HTML text", "Send the image itself")
    if text.startswith(b"[object "):
        raise unsupported("the text that JavaScript makes of an object", "Append a Blob or a File to the form")
    if _URL.fullmatch(text):
        raise unsupported("the URL of an image", "Send the image itself: this server downloads nothing")
    if _FILE_NAME.fullmatch(text):
        raise unsupported("the name of a file", "Send the file itself: with curl, -F file=@NAME")
    if text[:1] in (b"{", b"["):
        raise unsupported("JSON", "Send the bytes of the image")
    if text.startswith(b"version https://git-lfs"):
        raise unsupported("a pointer of Git LFS", "Fetch the image itself with `git lfs pull`")
    if _is_utf8(text):
        raise unsupported("a text", "Send the bytes of an image")


def _unpacked(upload: bytes) -> bytes:
    """Return the start of a gzip file's content."""
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(upload[:_TEXT_BYTES], _TEXT_BYTES)
    except zlib.error:
        return b""


def _is_utf8(text: bytes) -> bool:
    try:
        text[:-3].decode()  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True
