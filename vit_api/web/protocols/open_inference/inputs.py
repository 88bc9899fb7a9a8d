"""The three inputs of the model, and how each becomes uploads. Pure; knows nothing of HTTP and JSON."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.decoding.uploads import Pixels, Upload
from vit_api.errors import BadRequest, EmptyUpload, UploadTooLarge
from vit_api.web.protocols.open_inference.tensors import JsonLimits, Tensor, TensorSpec, element

IMAGE, PIXELS, PIXEL_VALUES = "image", "pixels", "pixel_values"

_LAST_LEVEL = 255
_LEAST_JSON_VALUES = 2**18
_MOST_NUMBER_BYTES = 24
_ENVELOPE_BYTES = 64 * 1024


class Inputs:
    """Read the input of a request.

    Args:
        preprocessing: The model's: it has the size of pixels, and what normalised ones are made with.
        max_images: Of one request at the most.
        max_upload_bytes: Of one image file at the most.
    """

    def __init__(self, preprocessing: Preprocessing, *, max_images: int, max_upload_bytes: int) -> None:
        self._preprocessing = preprocessing
        self._max_images = max_images
        self.max_upload_bytes = max_upload_bytes
        self._specs = {spec.name: spec for spec in self.specs()}

    @property
    def json_limits(self) -> JsonLimits:
        """What a request's JSON may have: one image's numbers or about a quarter of a million, or one file in base64.

        Python reads JSON without letting other threads run: 0.35 us a number, so 50 ms for one image of 224 pixels.
        """
        height, width, channels = self._preprocessing.pixel_shape
        max_values = max(_LEAST_JSON_VALUES, height * width * (channels + 2))
        file_bytes = self.max_upload_bytes * 4 // 3  # base64 makes 4 characters of 3 bytes
        return JsonLimits(max(file_bytes, max_values * _MOST_NUMBER_BYTES) + _ENVELOPE_BYTES, max_values)

    def specs(self) -> list[TensorSpec]:
        """Return what each input looks like."""
        height, width, channels = self._preprocessing.pixel_shape
        size = f"{height} x {width}"
        return [
            TensorSpec(IMAGE, "BYTES", (-1,), "Image files: JPEG, PNG and others, of any size; in JSON as base64"),
            TensorSpec(
                PIXELS, "UINT8", (-1, height, width, channels), f"RGB, {size}; channels last, or first: [-1, 3, ...]"
            ),
            TensorSpec(
                PIXEL_VALUES,
                "FP32",
                (-1, channels, height, width),
                f"What the checkpoint's image processor makes of RGB, {size}; channels first, or last. Taken back to"
                " 8 bits",
            ),
        ]

    def uploads_of(self, tensor: Tensor) -> Sequence[Upload]:
        """Return the images in an input.

        Raises:
            BadRequest: There is no such input, it has another datatype or shape, or its data is not as it says.
            EmptyUpload: An image file has no bytes.
            UploadTooLarge: An image file has too many bytes.
        """
        spec = self._specs.get(tensor.name)
        if spec is None:
            raise BadRequest(f"there is no input {tensor.name!r}; send one of {IMAGE!r}, {PIXELS!r}, {PIXEL_VALUES!r}")
        if tensor.datatype != spec.datatype:
            raise BadRequest(f"the input {tensor.name!r} has the datatype {spec.datatype}, not {tensor.datatype!r}")
        if not tensor.shape or not 1 <= tensor.shape[0] <= self._max_images:
            raise BadRequest(f"send 1 to {self._max_images} images: the first number of the shape of {tensor.name!r}")
        if tensor.name == IMAGE:
            return self._files(tensor)
        images = self._channels_last(tensor)
        if tensor.name == PIXELS:
            return [Pixels(image.tobytes()) for image in images]
        return [Pixels(self._levels(image, number).tobytes()) for number, image in enumerate(images)]

    def _files(self, tensor: Tensor) -> Sequence[bytes]:
        # Who goes by a Triton model's configuration has a second dimension of 1.
        if tensor.shape[1:] not in ((), (1,)):
            raise BadRequest(f"the shape of {IMAGE!r} is [number of images], not {list(tensor.shape)}")
        files = tensor.elements()
        for number, file in enumerate(files):
            if not file:
                raise EmptyUpload("it is empty; send an image file's bytes").about(element(IMAGE, number))
            if len(file) > self.max_upload_bytes:
                raise UploadTooLarge(self.max_upload_bytes).about(element(IMAGE, number))
        return files

    def _channels_last(self, tensor: Tensor) -> NDArray[np.generic]:
        """Return the numbers as [number, height, width, 3]."""
        last = self._preprocessing.pixel_shape
        first = (last[2], *last[:2])
        if tensor.shape[1:] not in (last, first):
            shapes = " or ".join(str([tensor.shape[0], *shape]) for shape in (last, first))
            raise BadRequest(f"the shape of {tensor.name!r} must be {shapes}, not {list(tensor.shape)}")
        numbers = tensor.numbers()
        return numbers if tensor.shape[1:] == last else np.moveaxis(numbers, 1, -1)

    def _levels(self, values: NDArray[np.generic], number: int) -> NDArray[np.uint8]:
        """Undo rescale and normalise, (x * scale - mean) / std, up to the rounding to whole levels.

        Raises:
            BadRequest: A value is not a number, or more than half a level from what 8 bits can be.
        """
        preprocessing = self._preprocessing
        with np.errstate(all="ignore"):  # what comes of infinities is refused below
            unscaled = values.astype(np.float64) * preprocessing.std + preprocessing.mean
            levels = np.rint(unscaled / np.float64(preprocessing.scale))
        if not ((levels >= 0) & (levels <= _LAST_LEVEL)).all():  # nor is NaN
            raise BadRequest("a value is not what the image processor makes of 8-bit pixels").about(
                element(PIXEL_VALUES, number)
            )
        return levels.astype(np.uint8)
