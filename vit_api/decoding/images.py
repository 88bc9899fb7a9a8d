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
from typing import NamedTuple

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
    UnidentifiedImageError,
    WebPImagePlugin,
)

from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding import bmp, heif, jpeg, plain, tiff
from vit_api.decoding.colours import Colour, on_background, to_eye, to_rgb
from vit_api.decoding.formats import identify
from vit_api.decoding.geometry import Box, Layout, crop_corner, first_crop, layout_of, resized_size
from vit_api.decoding.image_limits import TooComplex, UploadFile, bound_directories, gif_extent
from vit_api.decoding.jpeg import JpegStructure
from vit_api.decoding.memory import check_memory, check_size, picture_bytes
from vit_api.decoding.plain import PlainImage, PlainJpeg, PlainPng
from vit_api.decoding.png import picture_only, with_frames
from vit_api.decoding.resizing import resize, without_alpha
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

# An AVIF or HEIC may have more pixels than its container says, up to 16,384 pixels a side, and the libraries notice
# only after decoding them into hundreds of megabytes. So a process decodes one of them at a time.
_LYING_LOCK = threading.Lock()
_NO_LOCK = contextlib.nullcontext()

# Beyond it, exact decoding resizes only what the crop keeps.
_MAX_RESIZED_SIDE = 4096
_END_CHECKS = 3  # a JPEG without its last marker is decoded so many times
_SAVE_AGAIN = "Save it again, as PNG for example."
_UNSUPPORTED = re.compile("[Uu]nsupported|not supported|not available|cannot handle")
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


MAX_DECODE_BYTES = 350 * 2**20
"""Default of the memory that decoding one image may take."""


class Decoding(NamedTuple):
    """How an upload is decoded; see `decode`."""

    exact: bool
    max_side: int
    max_bytes: int
    background: Colour | None


class Opened(NamedTuple):
    """An upload whose header has been read.

    Attributes:
        format_name: One of `formats.FORMATS`.
        image: The picture, not decoded yet.
        held_bytes: What decoding holds besides the pixels.
    """

    format_name: str
    image: Image.Image
    held_bytes: int = 0


def decode(
    upload: bytes,
    preprocessing: Preprocessing,
    *,
    exact: bool,
    max_side: int = 65_535,
    max_bytes: int = MAX_DECODE_BYTES,
    background: Colour | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode an upload, apply its orientation, convert it to RGB, resize it and crop its centre.

    For animations and multi-page files, the first image is used. Thread-safe.

    Args:
        upload: The bytes of an image file.
        preprocessing: The resize and the crop to apply.
        exact: Decode every pixel of a JPEG, and convert and resize as transformers does, bit for bit; otherwise one
            that is much larger than needed is scaled by 1/2, 1/4 or 1/8 during decoding, and 16 bits are scaled.
        max_side: The longest side that is accepted, in pixels.
        max_bytes: The memory that decoding may take.
        background: The colour that shows through transparent pixels; None to drop alpha, as in transformers.

    Returns:
        uint8 pixels of shape `preprocessing.pixel_shape`.

    Raises:
        EmptyUpload: The upload has no bytes.
        UnsupportedImage: The upload is in none of the FORMATS, or of a kind of its format that is not read.
        ImageTooLarge: A side is too long, or decoding takes too much memory; raised before any pixel is decoded.
        BadImage: The file is corrupt, truncated or too complex.
    """
    decoding = Decoding(exact, max_side, max_bytes, background)
    with Reading(upload) as format_name, lock_of(format_name):
        opened = open_upload(upload, format_name, decoding)
        with opened.image:
            return pixels_of(opened, preprocessing, decoding)


class Reading:
    """A context that identifies an upload, and says what is wrong with it if reading it fails.

    Args:
        upload: The bytes of an image file.
    """

    __slots__ = ("_format_name", "_upload")

    def __init__(self, upload: bytes) -> None:
        self._upload = upload

    def __enter__(self) -> str:
        """Return its format, one of `formats.FORMATS`."""
        if not self._upload:
            raise EmptyUpload("The image is empty. Send the bytes of an image file.")
        self._format_name = identify(self._upload)
        _silence_pillow()
        return self._format_name

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Raise what is wrong with the file."""
        if not isinstance(error, Exception) or isinstance(error, ViTError):
            return
        if isinstance(error, TooComplex):
            raise BadImage(f"The {self._format_name} image is too complex: {error}. {_SAVE_AGAIN}") from error
        # PIL raises whatever its parsers run into: OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        raise _failure(self._upload, self._format_name, error) from error


def pixels_of(opened: Opened, preprocessing: Preprocessing, decoding: Decoding) -> npt.NDArray[np.uint8]:
    """Decode the picture, or the frame at which it is."""
    image = opened.image
    check_size(*image.size, decoding.max_side)
    if isinstance(image, PlainImage) and not decoding.exact and _is_as_needed(image, preprocessing):
        _check_memory(opened, decoding)
        return plain.pixels_of(image)
    if min(image.size) < 1:
        raise ValueError("The image has no pixels.")
    if decoding.exact:
        _check_memory(opened, decoding)
        return np.asarray(_decode_exactly(image, preprocessing, decoding))
    return plain.pixels_of(_decode_fast(opened, preprocessing, decoding))


def _is_as_needed(image: PlainImage, preprocessing: Preprocessing) -> bool:
    """Return whether a picture is neither turned, converted nor resized: many clients send the model's own size."""
    return image.size == preprocessing.only_size and image.mode in plain.RGB_OR_GREY and not image.has_metadata


def open_upload(upload: bytes, format_name: str, decoding: Decoding, *, has_frames: bool = False) -> Opened:
    """Check the structure of a file, drop what is not needed of it, and read its header.

    Args:
        upload: The bytes of an image file; `Reading` says what is wrong with it.
        format_name: Its format, whose `lock_of` is held until the picture is decoded.
        decoding: How it will be decoded.
        has_frames: Whether other frames than the first are read.

    Returns:
        The picture, which the caller closes.
    """
    if format_name == "JPEG":
        return _open_jpeg(upload, decoding)
    if format_name == "PNG":
        picture = None if has_frames else PlainPng.of(upload)
        if picture is None:
            upload = with_frames(upload) if has_frames else picture_only(upload)
            picture = None if has_frames else PlainPng.of(upload)
        if picture is not None:
            return Opened(format_name, picture)
    elif format_name == "GIF":
        extent = gif_extent(upload)
        check_size(*extent, decoding.max_side)
        check_memory(extent, picture_bytes("GIF", "P", extent, exact=decoding.exact), decoding.max_bytes)
    elif format_name == "TIFF":
        tiff.refuse_raw(upload)
    file = UploadFile(upload)
    if format_name == "HEIC":
        return Opened(format_name, heif.open_heif(file))
    image = Image.open(file, formats=[format_name])
    if isinstance(image, TiffImagePlugin.TiffImageFile) and not decoding.exact:
        tiff.refuse_kind(image, upload)
    return Opened(format_name, image)


def _open_jpeg(upload: bytes, decoding: Decoding) -> Opened:
    header = jpeg.plain_header(upload)
    if header is not None and plain.takes_jpeg(upload, header):
        return Opened("JPEG", PlainJpeg(upload, header, lambda: _open_any_jpeg(upload, decoding).image))
    return _open_any_jpeg(upload, decoding)


def _open_any_jpeg(upload: bytes, decoding: Decoding) -> Opened:
    upload = jpeg.without_leading_bytes(upload)
    structure = jpeg.read_structure(upload)
    if not structure.has_end:
        upload = _with_end(upload, structure, decoding)
    image = Image.open(UploadFile(upload), formats=["JPEG"])
    return Opened("JPEG", image, structure.coefficient_bytes)


def _with_end(upload: bytes, structure: JpegStructure, decoding: Decoding) -> bytes:
    """Return a JPEG without its last marker so that libjpeg reads it to its end."""
    if _END_CHECKS * structure.scans * structure.samples > jpeg.MAX_SCANNED_SAMPLES:
        raise TooComplex(f"it has {structure.scans} scans of its size, and no end")
    completed = upload.removesuffix(jpeg.END[:1]) + jpeg.END
    with Image.open(UploadFile(completed), formats=["JPEG"]) as image:
        check_size(*image.size, decoding.max_side)
        _check_memory(Opened("JPEG", image, structure.coefficient_bytes), decoding)
        whole = image.histogram()
    # Of a picture whose scans are complete, bytes that follow them change nothing.
    with Image.open(UploadFile(upload + jpeg.noise(len(upload)) + jpeg.END), formats=["JPEG"]) as image:
        if image.histogram() != whole:
            raise BadImage(f"The JPEG image is truncated. {_SAVE_AGAIN}")
    return completed


def _check_memory(opened: Opened, decoding: Decoding) -> None:
    """Check what decoding a picture, as it is set up now, takes."""
    image = opened.image
    needed = picture_bytes(opened.format_name, image.mode, image.size, exact=decoding.exact) + opened.held_bytes
    check_memory(image.size, needed, decoding.max_bytes)


def _failure(upload: bytes, format_name: str, error: Exception) -> ViTError:
    """Return what is wrong with a file that could not be decoded: whether it is damaged, or only not supported."""
    if format_name == "TIFF" and (isinstance(error, UnidentifiedImageError) or tiff.lacks_codec(upload)):
        kind = tiff.kind_of(upload)
        return tiff.not_read(kind) if kind else BadImage(f"The TIFF image is corrupt or truncated. {_SAVE_AGAIN}")
    if format_name == "HEIC" and heif.is_of_other_codec(error):
        return UnsupportedImage(f"The HEIF image has a codec that is not supported. {_SAVE_AGAIN}")
    if format_name == "BMP" and isinstance(error, OSError) and (kind := bmp.kind_of(upload)):
        return UnsupportedImage(f"The BMP image is of a kind that is not supported: {kind}. {_SAVE_AGAIN}")
    if isinstance(error, OSError) and _UNSUPPORTED.search(str(error)):
        return UnsupportedImage(f"The {format_name} image is of a kind that is not supported. {_SAVE_AGAIN}")
    return BadImage(f"The {format_name} image is corrupt or truncated. {_SAVE_AGAIN}")


def _silence_pillow() -> None:
    """Ignore PIL's warnings, which are about the client's file (its EXIF, its palette), not about this program.

    `warnings.catch_warnings` is not thread-safe, so this installs a process-wide filter, and moves it to the front
    again if another one was installed before it.
    """
    if warnings.filters[:1] != [_IGNORE_WARNINGS]:
        warnings.filterwarnings("ignore", module=_IGNORE_WARNINGS[3].pattern)


def lock_of(format_name: str) -> contextlib.AbstractContextManager[object]:
    """Return the lock to hold while decoding a format; see `_LYING_LOCK`."""
    return _LYING_LOCK if format_name in ("AVIF", "HEIC") else _NO_LOCK


def _decode_exactly(image: Image.Image, preprocessing: Preprocessing, decoding: Decoding) -> Image.Image:
    """Decode every pixel; turn, convert and resize in the order of transformers' pipeline, for bit-exact results."""
    image.load()
    turned = _turn(image, _orientation(image))
    if decoding.background is not None:
        turned = on_background(turned, decoding.background)
    rgb = to_rgb(turned, preprocessing)
    if preprocessing.crop is not None and max(resized_size(rgb.size, preprocessing)) > _MAX_RESIZED_SIDE:
        layout = layout_of(rgb.size, 1, preprocessing)
        return _resize_kept(rgb, (0, 0, *rgb.size), layout, preprocessing, exact=True).crop(layout.margins)
    if preprocessing.first_crop is not None:
        rgb = rgb.crop(first_crop(rgb.size, preprocessing))
    resized = resize(rgb, resized_size(rgb.size, preprocessing), preprocessing.resample, exact=True)
    if preprocessing.crop is None:
        return resized
    # A smaller image is padded with black, as in transformers' center_crop.
    left, top = crop_corner(resized.size, preprocessing.crop, rounds=preprocessing.has_rounded_crop)
    return resized.crop((left, top, left + preprocessing.crop[1], top + preprocessing.crop[0]))


def _decode_fast(opened: Opened, preprocessing: Preprocessing, decoding: Decoding) -> Image.Image:
    """Decode no more than needed: large JPEGs are scaled meanwhile, and only what the crop keeps is resized."""
    image, background = opened.image, decoding.background
    if opened.format_name != "JPEG":
        _check_memory(opened, decoding)
        image.load()  # TIFF turns itself, and other formats may correct their size
    orientation = _orientation(image)
    layout = layout_of(image.size, orientation, preprocessing)
    extent = _scale_jpeg(image, layout, preprocessing)
    _check_memory(opened, decoding)
    image.load()
    picture = to_eye(image, preprocessing, background)
    if picture.mode == "RGBA" and background is None:
        picture = without_alpha(picture)
    resized = _resize_kept(picture, extent, layout, preprocessing, exact=False)
    upright = _turn(resized if background is None else on_background(resized, background), orientation)
    if layout.margins != (0, 0, *upright.size):
        upright = upright.crop(layout.margins)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _scale_jpeg(image: Image.Image, layout: Layout, preprocessing: Preprocessing) -> Box:
    """Have a JPEG that is much larger than needed scaled while it is decoded; return the extent of the picture.

    No mode is requested, so CMYK and greyscale images keep theirs. The extent is the picture's true one, since the
    scaled sides are rounded up to whole pixels.
    """
    drafted = None
    if preprocessing.resample != Image.Resampling.NEAREST:  # of the pixels that it picks, none may be an average
        width, height = (math.ceil(side * DRAFT_MARGIN) for side in layout.target)
        drafted = image.draft(None, (width, height))
    return (0.0, 0.0, float(image.width), float(image.height)) if drafted is None else drafted[1]


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
    if isinstance(image, PlainImage) and not image.has_metadata:
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(orientation) if orientation in _TRANSPOSE_BY_ORIENTATION else 1
    except Exception:
        return 1


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    method = _TRANSPOSE_BY_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)
