"""The three inputs of the model, and how each is converted to uploads. Pure; knows nothing of HTTP or JSON."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding.uploads import Pixels, Upload
from vit_api.errors import BadRequest, EmptyUpload, UploadTooLarge
from vit_api.web.protocols.open_inference.tensors import JsonLimits, Tensor, TensorSpec, element

IMAGE, PIXELS, PIXEL_VALUES = "image", "pixels", "pixel_values"

_MAX_LEVEL = 255
_MIN_JSON_VALUES = 2**18
_MAX_NUMBER_BYTES = 24
_ENVELOPE_BYTES = 64 * 1024


class Inputs:
    """Convert the input of a request to uploads.

    Args:
        preprocessing: The model's preprocessing: the shape of its input, and its normalisation.
        max_images: Maximum number of images in one request.
        max_upload_bytes: Maximum size of one image file.
    """

    def __init__(self, preprocessing: Preprocessing, *, max_images: int, max_upload_bytes: int) -> None:
        self._preprocessing = preprocessing
        self._max_images = max_images
        self.max_upload_bytes = max_upload_bytes
        self._specs = {spec.name: spec for spec in self.specs()}

    @property
    def json_limits(self) -> JsonLimits:
        """Limits of a request's JSON: room for one image's numbers, at least 2**18, or for one file in base64.

        They are needed because `json.loads` holds the GIL, and with it every other thread, for as long as it parses.
        """
        height, width, channels = self._preprocessing.pixel_shape
        max_values = max(_MIN_JSON_VALUES, height * width * (channels + 2))
        file_bytes = self.max_upload_bytes * 4 // 3  # base64 encodes 3 bytes as 4 characters
        return JsonLimits(max(file_bytes, max_values * _MAX_NUMBER_BYTES) + _ENVELOPE_BYTES, max_values)

    def specs(self) -> list[TensorSpec]:
        """Return the description of each input."""
        height, width, channels = self._preprocessing.pixel_shape
        size = f"{height} x {width}"
        return [
            TensorSpec(IMAGE, "BYTES", (-1,), "Image files of any size: JPEG, PNG and others; in JSON as base64"),
            TensorSpec(
                PIXELS, "UINT8", (-1, height, width, channels), f"RGB, {size}; channels last, or first: [-1, 3, ...]"
            ),
            TensorSpec(
                PIXEL_VALUES,
                "FP32",
                (-1, channels, height, width),
                f"Output of the checkpoint's image processor, {size}; channels first, or last. Converted back"
                " to 8 bits",
            ),
        ]

    def uploads_of(self, tensor: Tensor) -> Sequence[Upload]:
        """Return the images in an input.

        Raises:
            BadRequest: There is no such input, it has another datatype or shape, or its data does not match them.
            EmptyUpload: An image file is empty.
            UploadTooLarge: An image file exceeds the maximum.
        """
        spec = self._specs.get(tensor.name)
        if spec is None:
            raise BadRequest(f"There is no input {tensor.name!r}. Send {IMAGE!r}, {PIXELS!r} or {PIXEL_VALUES!r}.")
        if tensor.datatype != spec.datatype:
            raise BadRequest(f"The datatype of {tensor.name!r} must be {spec.datatype}, not {tensor.datatype!r}.")
        if not tensor.shape or not 1 <= tensor.shape[0] <= self._max_images:
            raise BadRequest(
                f"The first dimension of {tensor.name!r} must be 1 to {self._max_images}, the number of images."
            )
        if tensor.name == IMAGE:
            return self._files(tensor)
        images = self._channels_last(tensor)
        if tensor.name == PIXELS:
            return [Pixels(image.tobytes()) for image in images]
        return [Pixels(self._levels(image, number).tobytes()) for number, image in enumerate(images)]

    def _files(self, tensor: Tensor) -> Sequence[bytes]:
        # A client that follows a Triton model's configuration sends a second dimension of 1.
        if tensor.shape[1:] not in ((), (1,)):
            raise BadRequest(f"The shape of {IMAGE!r} must be [number of images], not {list(tensor.shape)}.")
        files = tensor.elements()
        for number, file in enumerate(files):
            if not file:
                raise EmptyUpload("The image is empty. Send the bytes of an image file.").about(element(IMAGE, number))
            if len(file) > self.max_upload_bytes:
                raise UploadTooLarge(self.max_upload_bytes).about(element(IMAGE, number))
        return files

    def _channels_last(self, tensor: Tensor) -> NDArray[np.generic]:
        """Return the numbers as [number, height, width, 3]."""
        last = self._preprocessing.pixel_shape
        first = (last[2], *last[:2])
        if tensor.shape[1:] not in (last, first):
            shapes = " or ".join(str([tensor.shape[0], *shape]) for shape in (last, first))
            raise BadRequest(f"The shape of {tensor.name!r} must be {shapes}, not {list(tensor.shape)}.")
        numbers = tensor.numbers()
        return numbers if tensor.shape[1:] == last else np.moveaxis(numbers, 1, -1)

    def _levels(self, values: NDArray[np.generic], number: int) -> NDArray[np.uint8]:
        """Invert rescaling and normalisation, (x * scale - mean) / std, and round to 8-bit levels.

        Raises:
            BadRequest: A value is NaN, or more than half a level outside the range of 8 bits.
        """
        preprocessing = self._preprocessing
        if preprocessing.is_bgr:
            values = values[..., ::-1]
        with np.errstate(all="ignore"):  # infinities are rejected below
            unscaled = values.astype(np.float64) * preprocessing.std + preprocessing.mean
            levels = np.rint(unscaled / np.float64(preprocessing.scale))
        if not ((levels >= 0) & (levels <= _MAX_LEVEL)).all():  # also rejects NaN
            raise BadRequest("A value is out of the range that the image processor outputs for 8-bit pixels.").about(
                element(PIXEL_VALUES, number)
            )
        return levels.astype(np.uint8)
