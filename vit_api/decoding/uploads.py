"""What clients upload: image files, their base64, or pixels. Knows nothing of how they are sent."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_api.errors import BadRequest


@dataclass(frozen=True)
class Pixels:
    """One decoded image, in the size that the model takes.

    Attributes:
        data: uint8 RGB, row by row.
    """

    data: bytes

    def as_array(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """Return the pixels as (height, width, 3), without a copy."""
        return np.frombuffer(self.data, np.uint8).reshape(shape)


Upload = bytes | Pixels
"""An image to classify: the bytes of a file, or pixels."""


def decode_base64(text: str, field: str = "image") -> bytes:
    """Decode standard base64, with or without the prefix of a `data:` URL.

    Args:
        text: Base64.
        field: The name of the field that has it, for the error.

    Raises:
        BadRequest: The text is not base64.
    """
    payload = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"The field '{field}' is not valid base64.") from error
