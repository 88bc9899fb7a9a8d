"""Files that phones, cameras, scanners and programs write; `docs/images.md` lists the formats with their tests."""

from __future__ import annotations

import base64
import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from tests.support import samples
from tests.support.pictures import assert_seen, heic, pixels
from vit_api.errors import ImageTooLarge, UnsupportedImage


@pytest.mark.parametrize("name", ["png 16-bit", "tiff 16-bit"])
def test_16_bits_of_grey_are_scaled(name: str) -> None:
    """Transformers' pipeline clips them to white, and exact decoding gives its pixels."""
    upload = samples.image_files()[name]
    assert_seen(upload, "L")
    assert (pixels(upload, exact=True) > 250).mean() > 0.9


@pytest.mark.parametrize("name", ["gif", "gif animated", "webp", "bmp", "png", "tiff", "avif"])
def test_trailing_bytes_are_ignored(name: str) -> None:
    """Any bytes may follow the image."""
    plain = samples.image_files()[name]
    np.testing.assert_array_equal(pixels(plain + b"junk" * 50), pixels(plain))


def test_a_gif_without_trailer_is_read() -> None:
    """A GIF without its trailer has a complete frame."""
    plain = samples.image_files()["gif"]
    np.testing.assert_array_equal(pixels(plain[:-1]), pixels(plain))


OTHERS = {
    "svg": (b"<?xml version='1.0'?>\n<!-- a drawing -->\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "svg with a byte order mark": (b"\xef\xbb\xbf<svg width='1'></svg>", "SVG"),
    "svg in UTF-16": ("\ufeff<svg width='1'></svg>".encode("utf-16-le"), "SVG"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
    "psd": (b"8BPS\0\1" + bytes(60), "PSD"),
    "cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(60), "CR2"),
    "cr3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "CR3"),
    "dng": (b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHLL", 50706, 1, 4, 0x0401) + bytes(9), "DNG"),
    "nef": (
        b"MM\0*\0\0\0\x08\0\3"
        + struct.pack(">HHLL", 254, 4, 1, 1)
        + struct.pack(">HHLL", 271, 2, 18, 90)
        + struct.pack(">HHLL", 330, 4, 2, 120)
        + bytes(99),
        "NEF",
    ),
    "raf": (b"FUJIFILMCCD-RAW 0201" + bytes(60), "RAF"),
    "jpeg xl": (b"\xff\x0a" + bytes(60), "JPEG XL"),
    "jpeg xl in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "JPEG XL"),
    "jpeg 2000": (samples.encode(samples.photo((8, 8)), "JPEG2000"), "JPEG 2000"),
    "mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "video"),
    "mov": (b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", "video"),
    "webm": (b"\x1a\x45\xdf\xa3" + bytes(60), "WebM"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "AVI"),
    "zip": (b"PK\3\4" + bytes(60), "ZIP"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "ico": (samples.encode(samples.photo((32, 32)), "ICO"), "icon"),
    "tga": (samples.encode(samples.photo((8, 8)), "TGA"), "TGA"),
    "ppm": (samples.encode(samples.photo((8, 8)), "PPM"), "PNM"),
    "svg in gzip": (gzip.compress(b"<svg xmlns='x'/>"), "SVGZ"),
    "svg behind a long comment": (b"<?xml version='1.0'?><!--" + b"x" * 5000 + b"--><svg/>", "SVG"),
    "pdf behind junk": (b"\n\n  %PDF-1.4\n", "PDF"),
    "radiance": (b"#?RGBE\nFORMAT=32-bit_rle_rgbe\n", "HDR"),
    "openexr": (b"\x76\x2f\x31\x01" + bytes(30), "OpenEXR"),
    "dds": (b"DDS " + bytes(124), "DDS"),
    "pcx": (samples.encode(samples.photo((8, 8)), "PCX"), "PCX"),
    "tga without its footer": (bytes([0, 0, 2] + [0] * 9) + b"\x08\0\x08\0\x18\0" + bytes(192), "TGA"),
    "bitmap without its file header": (samples.encode(samples.photo((8, 8)), "BMP")[14:], "DIB"),
    "mng": (b"\x8aMNG\r\n\x1a\n" + bytes(30), "MNG"),
    "png whose line ends were converted": (samples.encode(samples.photo((8, 8))).replace(b"\r\n", b"\n"), "line ends"),
    "iphone's png": (
        samples.encode(samples.photo((8, 8)))[:8] + bytes([0, 0, 0, 4]) + b"CgBI" + bytes(8) + bytes(99),
        "CgBI",
    ),
    "sgi": (samples.encode(samples.photo((8, 8)), "SGI"), "SGI"),
    "im": (b"Image type: RGB image\r\nName: x\r\n" + bytes(60), "IFUNC"),
    "msp": (samples.encode(samples.photo((8, 8)).convert("1"), "MSP"), "Paint"),
    "xbm": (samples.encode(samples.photo((8, 8)).convert("1"), "XBM"), "XBM"),
    "xpm": (b"/* XPM */\nstatic char *x[] = {", "XPM"),
    "sun raster": (b"\x59\xa6\x6a\x95" + bytes(60), "Sun raster"),
    "dpx": (b"SDPX" + bytes(60), "DPX"),
    "pict": (bytes(522) + b"\0\x11\2\xff" + bytes(60), "PICT"),
    "xwd": (b"\0\0\0\x65\0\0\0\7\0\0\0\2" + bytes(60), "XWD"),
    "what macos stores beside a file": (b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(60), "AppleDouble"),
    "property list": (b"bplist00" + bytes(60), "property list"),
    "database": (b"SQLite format 3\0" + bytes(60), "database"),
    "docx": (b"PK\3\4" + bytes(60), "office document"),
    "doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(60), "office document"),
    "mp3": (b"ID3\x04" + bytes(60), "sound"),
    "tar": (bytes(257) + b"ustar\x0000" + bytes(200), "tar"),
    "base64": (base64.b64encode(samples.image_files()["jpeg"]), "base64 text"),
    "base64 in lines": (base64.encodebytes(samples.image_files()["jpeg"]), "base64 text"),
    "data url": (b"data:image/png;base64,AAAA", "base64 text"),
    "json": (b'{"image": null}', "JSON"),
    "object in javascript": (b"[object Object]", "JavaScript"),
    "name of a file": (b"C:\\Users\\me\\my cat.JPG", "name of a file"),
    "url": (b"https://example.com/cat.jpg?size=1\n", "URL of an image"),
    "storage's error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
    "part of a page": (b"  <div>404 Not Found</div>", "HTML"),
    "text": ("No such file: b\u00e4r.jpg".encode(), "text"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_rejected_by_name(name: str) -> None:
    """The message names the format and says what to send instead."""
    upload, what = OTHERS[name]
    with pytest.raises(
        UnsupportedImage, match=f"The upload is .*{what}.* not supported. (Render|Export|Send|Copy|Append)"
    ):
        pixels(upload)


@pytest.mark.parametrize(
    ("width", "height", "mode"),
    [(4900, 3266, "RGB"), (6000, 4000, "RGB"), (8000, 6000, "RGB"), (12_000, 9000, "L"), (16_382, 3628, "RGB")],
)
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_large_photos_are_read(width: int, height: int, mode: str, progressive: bool) -> None:
    """Photos of 16 to 108 megapixels and panoramas fit, since the JPEG decoder scales them down."""
    upload = samples.encode(samples.photo().convert(mode).resize((width, height)), "JPEG", progressive=progressive)
    assert_seen(upload, mode)


@pytest.mark.parametrize(
    ("image_format", "size", "mode"),
    [
        ("PNG", (8000, 8000), "RGB"),
        ("PNG", (8000, 8000), "RGBA"),
        ("TIFF", (8000, 8000), "L"),
        ("WEBP", (5000, 4000), "RGB"),
        ("AVIF", (4900, 4000), "RGB"),
    ],
)
def test_the_memory_limit_decides_which_images_are_too_large(
    image_format: str, size: tuple[int, int], mode: str
) -> None:
    """Large images are accepted by default, and rejected with the memory they need under a lower limit."""
    fast = {"AVIF": {"speed": 10}, "PNG": {"compress_level": 1}, "WEBP": {"method": 0}}
    upload = samples.encode(Image.new(mode, size, 100), image_format, **fast.get(image_format, {}))
    assert pixels(upload).shape == (48, 48, 3)
    with pytest.raises(ImageTooLarge, match=r"decoding it takes \d+ MiB, and at most 60 MiB"):
        pixels(upload, max_bytes=60 * 2**20)


BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "green": (0, 128, 0)}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("colour", BACKGROUNDS)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "WEBP", "HEIC", "1-colour"])
def test_hidden_colours_do_not_affect_the_pixels(mode: str, colour: str, exact: bool) -> None:
    """Colours under transparent pixels do not matter; the background shows through."""
    background = BACKGROUNDS[colour]
    files = []
    for hidden in (0, 200):
        grey_picture = Image.new("L", (64, 64), hidden)
        grey_picture.paste(100, (0, 0, 32, 64))
        alpha = Image.new("L", (64, 64), 0)
        alpha.paste(255, (0, 0, 32, 64))
        picture = Image.merge("RGBA", [grey_picture] * 3 + [alpha])
        if mode == "LA":
            files.append(samples.encode(picture.convert("LA")))
        elif mode == "P":
            paletted = grey_picture.convert("P")
            files.append(samples.encode(paletted, transparency=hidden))
        elif mode == "1-colour":
            files.append(samples.encode(grey_picture.convert("RGB"), transparency=(hidden,) * 3))
        elif mode == "WEBP":
            files.append(samples.encode(picture, "WEBP", lossless=True, exact=True))
        elif mode == "HEIC":
            files.append(heic(picture, chroma=444))
        else:
            files.append(samples.encode(picture))
    first, second = (pixels(file, background=background, exact=exact) for file in files)
    tolerance = 6 if mode == "HEIC" else 1
    assert np.abs(first - second).max() <= tolerance
    assert np.abs(first[:, 30:] - background).max() <= tolerance
    assert np.abs(first[:, :18] - 100).max() <= tolerance


def test_alpha_is_dropped_by_default() -> None:
    """Without a background, alpha is dropped, as in transformers."""
    picture = Image.new("RGBA", (64, 64), (9, 120, 77, 0))
    assert (pixels(samples.encode(picture)) == (9, 120, 77)).all()
