"""Where each pixel of the model's input comes from: orientation, resize and centre crop, as numbers only.

Knows no pixels and no files. Sizes are (width, height), but those of a `Preprocessing` are (height, width), as there.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from vit_api.checkpoints.preprocessing import Preprocessing, Size

Rectangle = tuple[int, int, int, int]
"""Left, top, right and bottom."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in fractions of pixels."""

# By EXIF orientation: whether the stored picture has x and y swapped, and runs from right to left and from bottom to
# top, compared with the upright one.
_STORED = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True)
class Layout:
    """How a stored picture becomes the model's input, if only what the crops keep is resized.

    Attributes:
        target: Size of the whole stored picture after the resize; not whole pixels if a crop comes before it.
        kept: The part of `target` that is in the model's input.
        margins: The crop of the upright `kept`; negative or beyond it where the input is padded with black.
    """

    target: tuple[float, float]
    kept: Box
    margins: Rectangle

    @property
    def kept_size(self) -> Size:
        """Size of `kept`, which is in whole pixels."""
        left, top, right, bottom = self.kept
        return round(right - left), round(bottom - top)

    def box(self, picture: Box) -> Box:
        """Return the part of a stored picture that becomes `kept`.

        Args:
            picture: The extent of the whole picture; see `PIL.Image.draft` for pictures that end within a pixel.
        """
        left, top, right, bottom = picture
        x_scale, y_scale = (right - left) / self.target[0], (bottom - top) / self.target[1]
        return (
            left + self.kept[0] * x_scale,
            top + self.kept[1] * y_scale,
            min(left + self.kept[2] * x_scale, right),
            min(top + self.kept[3] * y_scale, bottom),
        )


@functools.lru_cache(maxsize=256)
def layout_of(size: Size, orientation: int, preprocessing: Preprocessing) -> Layout:
    """Return the layout of a picture.

    Args:
        size: Width and height of the stored picture.
        orientation: Its EXIF orientation, 1 to 8.
        preprocessing: The resize and the crop.
    """
    swaps = _STORED[orientation][0]
    if preprocessing.first_crop is not None:
        return _layout_of_first_crop(size, orientation, preprocessing)
    upright = resized_size(size[::-1] if swaps else size, preprocessing)
    crop = preprocessing.crop or upright[::-1]
    left, top = crop_corner(upright, crop, rounds=preprocessing.has_rounded_crop)
    right, bottom = left + crop[1], top + crop[0]
    kept = (max(left, 0), max(top, 0), min(right, upright[0]), min(bottom, upright[1]))
    margins = (left - kept[0], top - kept[1], right - kept[0], bottom - kept[1])
    return Layout(upright[::-1] if swaps else upright, _stored(kept, upright, orientation), margins)


def _layout_of_first_crop(size: Size, orientation: int, preprocessing: Preprocessing) -> Layout:
    """Return the layout of a picture that is cropped before the resize."""
    swaps = _STORED[orientation][0]
    upright = size[::-1] if swaps else size
    left, top, right, bottom = first_crop(upright, preprocessing)
    width, height = resized_size((right - left, bottom - top), preprocessing)
    x_scale, y_scale = width / (right - left), height / (bottom - top)
    target = (upright[0] * x_scale, upright[1] * y_scale)
    kept = (left * x_scale, top * y_scale, left * x_scale + width, top * y_scale + height)
    return Layout(target[::-1] if swaps else target, _stored(kept, target, orientation), (0, 0, width, height))


def first_crop(size: Size, preprocessing: Preprocessing) -> Rectangle:
    """Return the crop of an image of `size` (width, height) before the resize: all of it if there is none."""
    if preprocessing.first_crop is None:
        return 0, 0, *size
    height, width = (max(int(part * min(size)), 1) for part in preprocessing.first_crop)
    left, top = crop_corner(size, (height, width))
    return left, top, left + width, top + height


def _stored(rectangle: Box, size: tuple[float, float], orientation: int) -> Box:
    """Return where a rectangle of an upright picture of `size` is in the stored picture."""
    swaps, from_right, from_bottom = _STORED[orientation]
    left, top, right, bottom = rectangle
    width, height = size
    if swaps:
        left, top, right, bottom, width, height = top, left, bottom, right, height, width
    if from_right:
        left, right = width - right, width - left
    if from_bottom:
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def resized_size(size: Size, preprocessing: Preprocessing) -> Size:
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


def crop_corner(size: Size, crop: Size, *, rounds: bool = False) -> Size:
    """Return (left, top) of a centred crop (height, width) in an image (width, height); negative means padding.

    Args:
        size: The image's.
        crop: The crop's.
        rounds: Whether to round half a pixel as torchvision does (`round`, half to even), and not down.
    """
    left, top = size[0] - crop[1], size[1] - crop[0]
    return (round(left / 2), round(top / 2)) if rounds else (left // 2, top // 2)
