"""Pixels that a client made itself, in place of an image file. Knows nothing of where they come from or go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pixels:
    """One image as the model takes it, so that nothing is left to decode.

    Attributes:
        data: uint8 RGB, row by row, in the model's own size.
    """

    data: bytes

    def as_array(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """Return the pixels as (height, width, 3), without a copy."""
        return np.frombuffer(self.data, np.uint8).reshape(shape)


Upload = bytes | Pixels
"""What a client wants classified: an image file's bytes, or pixels."""
