"""The LitAPI: what a ViT request goes through, as LitServe's five hooks.

Runs in our data path, decode and encode in an HTTP process and batch, predict and unbatch in a worker, and unchanged
in a plain `ls.LitServer`. Knows nothing of slots, pipes or the cache. torch is imported by `setup` alone, since HTTP
processes never run it.
"""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import litserve as ls
import numpy as np
from numpy.typing import NDArray

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.decoding import image_limits, images
from vit_api.decoding.uploads import Pixels, Upload
from vit_api.errors import BadRequest
from vit_api.ipc.records import Prediction
from vit_api.model.compile_cache import keep_compiled_code

if TYPE_CHECKING:
    from vit_api.model.model import Launched, VisionModel
    from vit_api.model.staging import Staged

logger = logging.getLogger(__name__)

DEFAULT_TOP_K = 5


class ViTAPI(ls.LitAPI):  # type: ignore[misc]
    """Classify images with a Hugging Face checkpoint.

    Args:
        checkpoint: The model to serve.
        dtype: What to compute in; see `model.choose_dtype`.
        engine: How the model runs; see `engines`.
        max_image_side: Pixels of an image's longer side at the most.
        exact_decode: Decode every pixel of a large JPEG instead of scaling it while it is decoded.
        cpu_threads: Threads that torch uses for one operation on the CPU; None: see `model.choose_threads`.
        lit_api_options: LitServe's own options: `max_batch_size`, `batch_timeout` in seconds, `loop` ...

    Attributes:
        model: None until `setup`.
        startup_s: How long `setup` took, in seconds.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: str = "auto",
        engine: str = "auto",
        max_image_side: int = 4096,
        exact_decode: bool = False,
        cpu_threads: int | None = None,
        **lit_api_options: Any,
    ) -> None:
        super().__init__(**lit_api_options)
        self.checkpoint = checkpoint
        self._dtype = dtype
        self._engine = engine
        self._max_image_side = max_image_side
        self._exact_decode = exact_decode
        self._cpu_threads = cpu_threads
        self.model: VisionModel | None = None
        self.startup_s = 0.0

    def setup(self, device: str) -> None:
        """Load the model on `device`, make its engine, and run every batch size that will come often."""
        started = time.monotonic()
        if self._engine == "compile":
            keep_compiled_code()
        from vit_api.model.model import VisionModel

        model = VisionModel(self.checkpoint, device, self._dtype, self._cpu_threads, self.max_batch_size)
        model.prepare(self._engine)
        self.model, self.startup_s = model, time.monotonic() - started
        logger.info("%s is ready after %.1f s, engine %s", device, self.startup_s, model.engine.name)

    # No annotation on `request`: LitServe would take it for the type of a body that FastAPI has to parse.
    def decode_request(self, request, **_: Any) -> NDArray[np.uint8]:  # type: ignore[no-untyped-def]
        """Decode an upload.

        Args:
            request: The upload or, as a stock LitServer passes it, a parsed body: a form with an upload `file` or
                JSON with base64 in `image`.

        Returns:
            uint8 [height, width, 3], resized as the checkpoint's processor does; pixels as they are.

        Raises:
            ViTError: The upload can't be used; its class says why.
        """
        if isinstance(request, Pixels):
            return request.as_array(self.checkpoint.preprocessing.pixel_shape)
        return images.decode(
            _upload_of(request),
            self.checkpoint.preprocessing,
            max_side=self._max_image_side,
            exact=self._exact_decode,
        )

    def is_quick(self, upload: Upload) -> bool:
        """Tell whether decoding takes no longer than handing the upload to another thread does."""
        return isinstance(upload, Pixels) or image_limits.is_quick(upload)

    def batch(self, inputs: Sequence[NDArray[np.uint8]]) -> Staged:
        """Gather images into one batch and send it to the device."""
        return self._loaded_model().stage(inputs)

    def predict(self, x: Staged) -> Launched:
        """Launch the model on a staged batch, and the copy of its answers; on a GPU, don't wait for either."""
        return self._loaded_model().launch(x)

    def unbatch(self, output: Launched) -> list[Prediction]:
        """Wait for a launched batch, and for nothing else, and split it by image."""
        return self._loaded_model().collect(output)

    def is_done(self, output: Launched) -> bool:
        """Tell whether `unbatch` has nothing to wait for."""
        return output.is_done()

    def has_working_device(self) -> bool:
        """Tell, after a failure, whether the device still computes."""
        return self._loaded_model().has_working_device()

    def free_memory(self) -> None:
        """Give back device memory that is kept for later, after a batch that did not fit."""
        self._loaded_model().free_memory()

    def encode_response(self, output: Prediction, *, top_k: int = DEFAULT_TOP_K) -> dict[str, Any]:
        """Name the `top_k` most probable classes, most probable first."""
        labels = self.checkpoint.labels
        top = zip(output.indices[:top_k], output.probabilities[:top_k], strict=True)
        return {"predictions": [{"label": labels[index], "confidence": round(p, 6)} for index, p in top]}

    def _loaded_model(self) -> VisionModel:
        if self.model is None:
            raise RuntimeError("setup() has not run in this process")
        return self.model


def _upload_of(request: Any) -> bytes:
    """Return the upload's bytes, whichever way the request brings them."""
    if isinstance(request, bytes):
        return request
    if isinstance(request, Mapping) and "file" in request:
        content: bytes = request["file"].file.read()
        return content
    if isinstance(request, Mapping) and isinstance(request.get("image"), str):
        return decode_base64(request["image"])
    raise BadRequest("send the image in the form field 'file' or as base64 in the JSON field 'image'")


def decode_base64(text: str, field: str = "image") -> bytes:
    """Decode standard base64, with a `data:` URL's prefix or without.

    Args:
        text: Base64.
        field: Where the client put it, for one that put something else there.

    Raises:
        BadRequest: The text is not base64.
    """
    payload = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"the field '{field}' is not valid base64") from error
