"""Our LitAPI with Pillow's decoder, independent of our own: what a user of Pillow would write.

Every server that ours is compared with decodes like this, and runs our forward pass on our checkpoint. So all classify
the same pixels with the same code, and only the server differs.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_api.lit_api import ViTAPI

_REDUCING_GAP = 2.4
"""How many times the target a JPEG that is scaled while it is decoded must be: with the 2.0 of `Image.thumbnail`,
answers of the 32 px model differ from this server's by more than 0.02."""


class PillowAPI(ViTAPI):
    """Classify images that Pillow decodes; for checkpoints that resize to a fixed size."""

    # No annotation on `request`: LitServe would have FastAPI parse the body as that type.
    def decode_request(self, request, **_: Any) -> NDArray[np.uint8]:  # type: ignore[no-untyped-def]
        """Decode an upload: the bytes of an image, or a form with the field `file`.

        Returns:
            uint8 [height, width, 3].

        Raises:
            OSError: Pillow can't decode it.
            ValueError: The checkpoint resizes to no fixed size.
        """
        upload = request if isinstance(request, (bytes, bytearray)) else request["file"].file.read()
        size = self.checkpoint.preprocessing.size
        if size is None:
            raise ValueError("The benchmarks' checkpoints resize to a fixed size.")
        height, width = size
        with Image.open(io.BytesIO(upload)) as image:
            image.draft("RGB", (math.ceil(_REDUCING_GAP * width), math.ceil(_REDUCING_GAP * height)))
            resample = Image.Resampling(self.checkpoint.preprocessing.resample)
            return np.asarray(image.convert("RGB").resize((width, height), resample))
