"""What a client uploads: an image file's bytes, or pixels that it decoded itself.

Knows nothing of where uploads come from or where they go.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_api.errors import BadRequest


@dataclass(frozen=True)
class Pixels:
    """One image in the model's own size, so that there is nothing left to decode.

    Attributes:
        data: uint8 RGB, row by row.
    """

    data: bytes

    def as_array(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """Return the pixels as (height, width, 3), without a copy."""
        return np.frombuffer(self.data, np.uint8).reshape(shape)


Upload = bytes | Pixels
"""An image file's bytes, or pixels."""


def decode_base64(text: str, field: str = "image") -> bytes:
    """Decode standard base64, with or without the prefix of a `data:` URL.

    Args:
        text: Base64.
        field: The field that the client sent it in, for the error message.

    Raises:
        BadRequest: The text is not base64.
    """
    payload = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(
            f"The field '{field}' is not valid base64: encode the image file as standard base64."
        ) from error
