"""Decodes an image file to uint8 RGB pixels of the model's input size, within bounds on time and memory.

Knows nothing of HTTP, slots or models. With `exact`, the pixels are bit for bit those that transformers'
image-classification pipeline gets from its PIL backend, before rescaling.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import warnings

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding.colours import to_grey_or_rgb, to_rgb
from vit_api.decoding.geometry import Box, Layout, crop_corner, layout_of, resized_size
from vit_api.decoding.image_limits import TooComplex, UploadFile, bound_directories, check_gif, check_jpeg, check_sides
from vit_api.decoding.resizing import resize
from vit_api.errors import BadImage, EmptyUpload, UnsupportedImage, ViTError

# Importing a plugin registers its format; no other format can be opened. JPEG includes MPO, a JPEG with several
# pictures, which phones write.
_PLUGINS = (
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
    GifImagePlugin,
    BmpImagePlugin,
    TiffImagePlugin,
    AvifImagePlugin,
)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# PIL's own guard against decompression bombs counts pixels, warns before it refuses, and has a process-wide limit. Here
# each side is checked from the header instead, so the guard is disabled.
Image.MAX_IMAGE_PIXELS = None
bound_directories()

# A JPEG is scaled while it is decoded only to sizes at least this many times the resize target. On six photos at 4 to
# 20 times the target, with 2.4 a pixel is off by 0.26 on average and by 1.5 at the 99th percentile, less than what
# saving the photo again at quality 85 does (0.40 and 2); with 2 it is 0.34 and 2, with 1 it is 0.90 and 6. With 3 it is
# 0.21 and 1.2, but then a frame of 1080 lines isn't scaled for 224. tests/unit/decoding/test_images.py holds it to
# that, and benchmarks/results/resizing.json has what it means for answers: with 2, not every filter passes the gate.
DRAFT_MARGIN = 2.4

# An AVIF may have more pixels than its container says, up to 16,384 pixels a side, and libavif notices only after
# decoding them into hundreds of megabytes. So a process decodes one AVIF at a time; libavif has its own threads.
_AVIF_LOCK = threading.Lock()

_SIGNATURE_BYTES = 16
_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_IGNORE_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def decode(upload: bytes, preprocessing: Preprocessing, *, max_side: int, exact: bool) -> npt.NDArray[np.uint8]:
    """Decode an upload, apply its orientation, convert it to RGB, resize it and crop its centre.

    For animations and multi-page files, the first image is used. Alpha is dropped, not blended, as in transformers; see
    `colours.to_rgb` for a single transparent colour. Thread-safe.

    Args:
        upload: The bytes of an image file.
        preprocessing: The resize and the crop to apply.
        max_side: The longest side that is accepted, in pixels.
        exact: Decode every pixel of a JPEG; otherwise one that is much larger than needed is scaled by 1/2, 1/4 or 1/8
            during decoding.

    Returns:
        uint8 pixels of shape `preprocessing.pixel_shape`.

    Raises:
        EmptyUpload: The upload has no bytes.
        UnsupportedImage: The upload is in none of the FORMATS.
        ImageTooLarge: A side is longer than `max_side`; raised before any pixel is decoded.
        BadImage: The file is corrupt, truncated or too complex, or of a kind that PIL does not support.
    """
    if not upload:
        raise EmptyUpload("The image is empty: send the bytes of an image file.")
    format_name = _format(upload)
    _silence_pillow()
    try:
        _check_structure(upload, format_name, max_side)
        with _lock_of(format_name), Image.open(UploadFile(upload), formats=[format_name]) as image:
            _check_size(image, max_side)
            if exact:
                return np.asarray(_decode_exactly(image, preprocessing, max_side))
            return np.asarray(_decode_fast(image, preprocessing))
    except ViTError:
        raise
    except TooComplex as error:
        raise BadImage(
            f"The {format_name} image is too complex: {error}. Save it again, as PNG for example."
        ) from error
    except Exception as error:
        # PIL raises whatever its parsers run into: OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        raise BadImage(
            f"The {format_name} image can't be decoded: it is corrupt, truncated or of a kind that is not supported. "
            "Save it again, as PNG for example."
        ) from error


def _format(upload: bytes) -> str:
    """Detect the format from the file's first bytes."""
    start = upload[:_SIGNATURE_BYTES]
    for name in FORMATS:
        accept = Image.OPEN[name][1]
        if accept is not None and accept(start) is True:
            return name
    raise UnsupportedImage(f"The upload is not an image in a supported format: send one of {', '.join(FORMATS)}.")


def _silence_pillow() -> None:
    """Ignore PIL's warnings, which are about the client's file (its EXIF, its palette), not about this program.

    `warnings.catch_warnings` is not thread-safe, so this installs a process-wide filter, and moves it to the front
    again if another one was installed before it.
    """
    if warnings.filters[:1] != [_IGNORE_WARNINGS]:
        warnings.filterwarnings("ignore", module=_IGNORE_WARNINGS[3].pattern)


def _lock_of(format_name: str) -> contextlib.AbstractContextManager[object]:
    """Return the lock to hold while decoding a format; see `_AVIF_LOCK`."""
    return _AVIF_LOCK if format_name == "AVIF" else contextlib.nullcontext()


def _check_structure(upload: bytes, format_name: str, max_side: int) -> None:
    if format_name == "JPEG":
        check_jpeg(upload)
    elif format_name == "GIF":
        check_gif(upload, max_side)


def _check_size(image: Image.Image, max_side: int) -> None:
    check_sides(*image.size, max_side)
    if min(image.size) < 1:
        raise ValueError("The image has no pixels.")


def _decode_exactly(image: Image.Image, preprocessing: Preprocessing, max_side: int) -> Image.Image:
    """Decode every pixel; turn, convert and resize in the order of transformers' pipeline, for bit-exact results."""
    image.load()
    rgb = to_rgb(_turn(image, _orientation(image)), preprocessing)
    if preprocessing.crop is not None and max(resized_size(rgb.size, preprocessing)) > max_side:
        layout = layout_of(rgb.size, 1, preprocessing)
        return _resize_kept(rgb, (0, 0, *rgb.size), layout, preprocessing, exact=True).crop(layout.margins)
    resized = resize(rgb, resized_size(rgb.size, preprocessing), preprocessing.resample, exact=True)
    if preprocessing.crop is None:
        return resized
    # A smaller image is padded with black, as in transformers' center_crop.
    left, top = crop_corner(resized.size, preprocessing.crop)
    return resized.crop((left, top, left + preprocessing.crop[1], top + preprocessing.crop[0]))


def _decode_fast(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Decode no more than needed: large JPEGs are scaled meanwhile, and only what the crop keeps is resized."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        image.load()  # TIFF turns itself, and other formats may correct their size
    orientation = _orientation(image)
    layout = layout_of(image.size, orientation, preprocessing)
    # No mode is requested, so CMYK and greyscale images keep theirs. The extent is the picture's true one, since the
    # scaled sides are rounded up to whole pixels.
    # Of the pixels that the nearest-neighbour filter picks, none may be an average.
    width, height = (math.ceil(side * DRAFT_MARGIN) for side in layout.target)
    is_nearest = preprocessing.resample == Image.Resampling.NEAREST
    drafted = None if is_nearest else image.draft(None, (width, height))
    extent = (0.0, 0.0, float(image.width), float(image.height)) if drafted is None else drafted[1]
    resized = _resize_kept(to_grey_or_rgb(image, preprocessing), extent, layout, preprocessing, exact=False)
    upright = _turn(resized, orientation)
    if layout.margins != (0, 0, *upright.size):
        upright = upright.crop(layout.margins)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _resize_kept(
    image: Image.Image, extent: Box, layout: Layout, preprocessing: Preprocessing, *, exact: bool
) -> Image.Image:
    """Resize only what the crop keeps.

    An image of 1 x 8000 pixels would otherwise be resized to 256 x 2,048,000. Pillow keeps the corners of the box in
    single precision, so pixel values can differ by 1 from those of the whole resize.
    """
    return resize(image, layout.kept_size, preprocessing.resample, layout.box(extent), exact=exact)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; EXIF data that can't be read is ignored."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(orientation) if orientation in _TRANSPOSE_BY_ORIENTATION else 1
    except Exception:
        return 1


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    method = _TRANSPOSE_BY_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)
