"""Decodes an image file to uint8 RGB pixels of the model's input size, within bounds on time and memory.

Knows nothing of HTTP, slots or models. With `exact`, the pixels are bit for bit those that transformers'
image-classification pipeline gets from its PIL backend, before rescaling.
"""

from __future__ import annotations

import contextlib
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

from vit_api.checkpoints.preprocessing import Preprocessing, Size
from vit_api.decoding.image_limits import TooComplex, UploadFile, bound_directories, check_gif, check_jpeg, check_sides
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
# 20 times the target, with 2 a pixel is off by 0.33 on average and by 2 at the 99th percentile, about what saving the
# photo again at quality 85 does (0.40 and 2); with 1 it is 0.93 and 6, with 3 it is 0.21 and 1.3, but then photos of
# less than 6 times the target aren't scaled at all. tests/unit/decoding/test_images.py holds it to that.
DRAFT_MARGIN = 2

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
_SWAPS_SIDES = (5, 6, 7, 8)

_IGNORE_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def decode(upload: bytes, preprocessing: Preprocessing, *, max_side: int, exact: bool) -> npt.NDArray[np.uint8]:
    """Decode an upload, apply its orientation, convert it to RGB, resize it and crop its centre.

    For animations and multi-page files, the first image is used. Alpha is dropped, not blended, as in transformers; see
    `_rgb` for a single transparent colour. Thread-safe.

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
            pixels = None if exact else _decode_reduced(image, preprocessing)
            return np.asarray(pixels or _decode_fully(image, preprocessing, max_side))
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


def _decode_fully(image: Image.Image, preprocessing: Preprocessing, max_side: int) -> Image.Image:
    """Decode every pixel; turn, convert and resize in the order of transformers' pipeline, for bit-exact results."""
    image.load()
    rgb = _rgb(_turn(image, _orientation(image)), preprocessing)
    target = _resized_size(rgb.size, preprocessing)
    if preprocessing.crop is not None and max(target) > max_side:
        return _resize_centre(rgb, target, preprocessing)
    return _crop(rgb.resize(target, preprocessing.resample), preprocessing.crop)


def _decode_reduced(image: Image.Image, preprocessing: Preprocessing) -> Image.Image | None:
    """Scale a JPEG during decoding; return None if it is not a JPEG or not much larger than needed."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    orientation = _orientation(image)
    swaps = orientation in _SWAPS_SIDES
    width, height = _resized_size(image.size[::-1] if swaps else image.size, preprocessing)
    target = (height, width) if swaps else (width, height)  # as it is stored in the file
    # No mode is requested, so CMYK and greyscale images keep theirs. The box is the picture's true extent, since the
    # scaled sides are rounded up to whole pixels.
    header_size = image.size
    drafted = image.draft(None, (target[0] * DRAFT_MARGIN, target[1] * DRAFT_MARGIN))
    if drafted is None or image.size == header_size:
        return None
    resized = _rgb(image, preprocessing).resize(target, preprocessing.resample, box=drafted[1])
    return _crop(_turn(resized, orientation), preprocessing.crop)


def _orientation(image: Image.Image) -> object:
    """Return the EXIF orientation, 1 to 8; EXIF data that can't be read is ignored."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _turn(image: Image.Image, orientation: object) -> Image.Image:
    method = _TRANSPOSE_BY_ORIENTATION.get(orientation)  # type: ignore[call-overload]
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Convert to RGB as transformers does: alpha is dropped; 16 bits are clipped or scaled as PIL does.

    The pipeline's own conversion drops alpha, but keeps the one transparent colour of a GIF or PNG beside the RGB
    pixels. A processor that converts once more (`do_convert_rgb`) then replaces that colour by white.
    """
    image.load()
    if not preprocessing.has_white_background:
        image.info.pop("transparency", None)  # otherwise PIL computes a transparent colour that is never used
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if rgb.info.get("transparency") is None:
        return rgb
    white = Image.new("RGBA", rgb.size, "white")
    return Image.alpha_composite(white, rgb.convert("RGBA")).convert("RGB")


def _resized_size(size: Size, preprocessing: Preprocessing) -> Size:
    """Return the (width, height) of an image of `size` (width, height) after the resize.

    The longer edge is rounded down, as in transformers' get_resize_output_image_size.
    """
    if preprocessing.size is not None:
        return preprocessing.size[1], preprocessing.size[0]
    assert preprocessing.shortest_edge is not None
    width, height = size
    short = preprocessing.shortest_edge
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _crop(image: Image.Image, crop: Size | None) -> Image.Image:
    """Crop the centre; a smaller image is padded with black, as in transformers' center_crop."""
    if crop is None:
        return image
    left, top = _crop_corner(image.size, crop)
    return image.crop((left, top, left + crop[1], top + crop[0]))


def _crop_corner(size: Size, crop: Size) -> Size:
    """Return (left, top) of a centred crop (height, width) in an image (width, height); negative means padding."""
    return (size[0] - crop[1]) // 2, (size[1] - crop[0]) // 2


def _resize_centre(rgb: Image.Image, target: Size, preprocessing: Preprocessing) -> Image.Image:
    """Resize only what the crop keeps, for narrow images whose resized edge would exceed the accepted size.

    An image of 1 x 8000 pixels would otherwise be resized to 256 x 2,048,000. PIL keeps the corners of the box in
    single precision, so pixel values can differ by 1 from those of the whole resize.
    """
    assert preprocessing.crop is not None
    height, width = preprocessing.crop
    left, top = _crop_corner(target, preprocessing.crop)
    kept = (max(left, 0), max(top, 0), min(left + width, target[0]), min(top + height, target[1]))
    x_scale, y_scale = rgb.width / target[0], rgb.height / target[1]
    box = (kept[0] * x_scale, kept[1] * y_scale, kept[2] * x_scale, kept[3] * y_scale)
    resized = rgb.resize((kept[2] - kept[0], kept[3] - kept[1]), preprocessing.resample, box=box)
    left, top = min(left, 0), min(top, 0)
    return resized.crop((left, top, left + width, top + height))
