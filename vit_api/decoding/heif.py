"""Opens HEIC and HEIF pictures with libheif, if the package `pillow-heif` is installed.

Only the primary picture is read; thumbnails, depth maps and other pictures of the file are not.
"""

from __future__ import annotations

from typing import IO

from PIL import Image

from vit_api.decoding.other_formats import unsupported

try:
    import pillow_heif
    from pillow_heif.as_plugin import HeifImageFile
except ImportError:  # no wheel for this platform
    HeifImageFile = None
else:
    pillow_heif.options.THUMBNAILS = False
    pillow_heif.options.DEPTH_IMAGES = False
    pillow_heif.options.AUX_IMAGES = False
    pillow_heif.options.DECODE_THREADS = 1

_NO_DECODER = "No decoding plugin"


def is_installed() -> bool:
    """Return whether HEIC can be read."""
    return HeifImageFile is not None


def open_heif(file: IO[bytes]) -> Image.Image:
    """Open a file, without decoding its pixels.

    Raises:
        UnsupportedImage: libheif is missing, or does not read the file's codec.
        SyntaxError: The file is corrupt.
    """
    if HeifImageFile is None:
        raise unsupported("a HEIC image", "Export it as JPEG, or install pillow-heif on the server")
    image: Image.Image = HeifImageFile(file)
    return image


def is_of_other_codec(error: BaseException) -> bool:
    """Return whether libheif refused a picture because of its codec."""
    return any(words in str(error) for words in (_NO_DECODER, "Unsupported codec", "unsupported codec"))
