"""Resizes pictures, with SIMD if the package `cykooz-resizer` is installed, else with Pillow.

Knows nothing of files, orientations or models.
"""

from __future__ import annotations

import functools
import math
import threading

from PIL import Image

from vit_api.decoding.geometry import Box

try:
    import cykooz_resizer as simd
    from cykooz_resizer.alpha import set_image_mode
except ImportError:  # wheels exist for some platforms only
    simd = None

Resample = Image.Resampling

# Where a sample lies exactly between two pixels, the filters of no width (nearest, box) choose another one than Pillow,
# whole grey levels away, and Hamming does not exist: Pillow has these filters, which cost it the least anyway. On
# photos, the others differ from Pillow's by 0.1 of 255 on average; benchmarks/results/accuracy.json has them one by
# one. Pillow's bicubic filter (a = -0.5) is the one of Catmull and Rom.
_SIMD_FILTERS = (
    {}
    if simd is None
    else {
        Resample.BILINEAR: simd.FilterType.bilinear,
        Resample.BICUBIC: simd.FilterType.catmull_rom,
        Resample.LANCZOS: simd.FilterType.lanczos3,
    }
)
_SIMD_MODES = ("L", "RGB", "RGBA")
_OPTIONS = 256
_of_thread = threading.local()


def resizer_name(*, exact: bool) -> str:
    """Return the package that resizes.

    Args:
        exact: Whether the pixels must be Pillow's, bit for bit.
    """
    return "pillow" if exact or simd is None else "cykooz-resizer"


def without_alpha(image: Image.Image) -> Image.Image:
    """Return an RGBA picture as RGB, for `resize`.

    PIL keeps four bytes per pixel for either, so the resizer can take the one for the other; a converted copy of a
    large picture takes hundreds of megabytes.
    """
    if simd is None:
        return image.convert("RGB")
    set_image_mode(image, "RGB")
    return image


def resize(
    image: Image.Image, size: tuple[int, int], resample: int, box: Box | None = None, *, exact: bool
) -> Image.Image:
    """Resize a picture, or the part of it in `box`.

    Args:
        image: A picture of any mode.
        size: The width and height of the result.
        resample: The number of Pillow's resampling filter.
        box: The part to resize; None for all of it.
        exact: Return what Pillow does, bit for bit.
    """
    if image.size == size and box in (None, (0, 0, *size)) and not exact:
        return image  # as Pillow does, but without a copy
    if exact or resample not in _SIMD_FILTERS or image.mode not in _SIMD_MODES:
        return image.resize(size, resample, box=box)
    resized = Image.new(image.mode, size, None)  # without a colour: every pixel is written
    _resizer().resize_pil(image, resized, _options(resample, None if box is None else (*box, *image.size)))
    return resized


def _resizer() -> simd.Resizer:
    """Return this thread's resizer: it has buffers, and can't be used by two threads at once."""
    try:
        return _of_thread.resizer
    except AttributeError:
        _of_thread.resizer = simd.Resizer()
        return _of_thread.resizer


@functools.lru_cache(maxsize=_OPTIONS)
def _options(resample: int, part: tuple[float, float, float, float, int, int] | None) -> simd.ResizeOptions:
    """Return the options of a filter and the part of a picture to resize: its box, and the picture's width and height.

    Uploads often have the same size, and making the options takes as long as resizing a small picture.
    """
    options = simd.ResizeOptions(simd.ResizeAlg.convolution(_SIMD_FILTERS[Resample(resample)]))
    if part is not None:
        left, top, right, bottom, width, height = part
        options.crop_box = simd.CropBox(left, top, _extent(left, right, width), _extent(top, bottom, height))
    return options


def _extent(start: float, end: float, length: int) -> float:
    """Return the length of a box along one axis, which rounding must not make end outside the picture."""
    extent = end - start
    return extent if start + extent <= length else math.nextafter(extent, 0)
