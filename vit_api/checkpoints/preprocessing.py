"""What happens to an image's pixels before the model. Knows nothing of the files that say so."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

Size = tuple[int, int]
Channels = tuple[float, float, float]


class UnsupportedProcessor(Exception):
    """The checkpoint's image processor is not supported; the message says why."""


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of an RGB image: resize, centre crop, rescale, normalise.

    Attributes:
        size: (height, width) of the resize, ignoring the aspect ratio, or None.
        shortest_edge: The length of the shorter edge after a resize that keeps the aspect ratio, or None.
        crop: (height, width) of the centre crop after the resize, or None.
        resample: The number of PIL's resampling filter.
        scale: The factor for each pixel value; 1.0 if the processor does not rescale.
        mean: Subtracted from each channel after scaling; zeros if the processor does not normalise.
        std: The divisor of each channel; ones if the processor does not normalise.
        has_white_background: Whether the single transparent colour of an image becomes white.
        first_crop: (height, width) of a centre crop before the resize, in parts of the shorter side; None for none.
        is_bgr: Whether the model takes the normalised channels in the order blue, green, red; `mean` and `std` are
            in the order red, green, blue all the same.
        has_rounded_crop: Whether a crop that can't be centred exactly starts at the rounded half of what is left, as
            in torchvision, and not at the half rounded down, as in transformers.
    """

    size: Size | None
    shortest_edge: int | None
    crop: Size | None
    resample: int
    scale: float
    mean: Channels
    std: Channels
    has_white_background: bool = False
    first_crop: tuple[float, float] | None = None
    is_bgr: bool = False
    has_rounded_crop: bool = False

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """The shape (height, width, 3) of the model's input pixels."""
        shape = self.crop or self.size
        if shape is None:
            raise ValueError("A resize that keeps the aspect ratio needs a crop.")
        return (*shape, 3)

    @functools.cached_property
    def only_size(self) -> Size | None:
        """The (width, height) of pictures that are taken as they are, whatever the filter; None if there are none."""
        if self.size is None or self.first_crop is not None or self.crop not in (None, self.size):
            return None
        return self.size[::-1]

    def has_pixels_of(self, other: Preprocessing) -> bool:
        """Return whether an image's pixels are the same: those of uint8, before they are scaled and normalised."""
        zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        mine, others = (replace(one, scale=1.0, mean=zeros, std=ones, is_bgr=False) for one in (self, other))
        return mine == others
