"""The LitAPI: the stages of a ViT request, as LitServe's five hooks.

In our data path, decode and encode run in an HTTP process, and batch, predict and unbatch in a worker; in a plain
`ls.LitServer`, the same class runs unchanged. Only `setup` imports torch, since HTTP processes never call it. Knows
nothing of slots, pipes or the cache.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import litserve as ls
import numpy as np
from numpy.typing import NDArray

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.decoding import frames, image_limits, images
from vit_api.decoding.colours import parse_background
from vit_api.decoding.cost import Cost, estimate
from vit_api.decoding.frames import Frame, FramePlan
from vit_api.decoding.uploads import Pixels, Upload, decode_base64
from vit_api.environment.garbage import collection_paused
from vit_api.errors import BadRequest
from vit_api.ipc.records import DEFAULT_TOP_K, Prediction
from vit_api.labels.thresholds import SCORE_DIGITS, Thresholds

if TYPE_CHECKING:
    from vit_api.model.model import Launched, VisionModel
    from vit_api.model.staging import Staged
    from vit_api.settings import Settings

logger = logging.getLogger(__name__)


def options_of(settings: Settings) -> dict[str, Any]:
    """Return the options of a `ViTAPI` that are settings of the same name."""
    return {
        "dtype": settings.dtype,
        "engine": settings.engine,
        "max_image_side": settings.max_image_side,
        "max_decode_bytes": settings.max_decode_bytes,
        "exact_decode": settings.exact_decode,
        "background": settings.background,
        "cpu_threads": settings.cpu_threads,
    }


class ViTAPI(ls.LitAPI):  # type: ignore[misc]
    """Classify images with a Hugging Face checkpoint.

    Args:
        checkpoint: The model to serve.
        dtype: The dtype to compute in; see `model.precision`.
        engine: How to run the model; see `model.engines`.
        max_image_side: Maximum width and height of an image, in pixels.
        max_decode_bytes: Memory that decoding one image may take.
        exact_decode: Decode every pixel of a large JPEG instead of scaling it while it is decoded.
        background: The colour that shows through transparent pixels: none, white, black or #rrggbb.
        cpu_threads: Threads that torch uses for one operation on the CPU; None: see `model.precision`.
        thresholds: From which scores on labels are flagged; None if none are.
        all_classes: Whether each prediction has all classes.
        on_failure: Called in the worker if `setup` fails, with the reason.
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
        max_image_side: int = 65_535,
        max_decode_bytes: int = images.MAX_DECODE_BYTES,
        exact_decode: bool = False,
        background: str = "none",
        cpu_threads: int | None = None,
        thresholds: Thresholds | None = None,
        all_classes: bool = False,
        on_failure: Callable[[str], None] | None = None,
        **lit_api_options: Any,
    ) -> None:
        super().__init__(**lit_api_options)
        self.checkpoint = checkpoint
        self._dtype = dtype
        self._engine = engine
        self._decoding = images.Decoding(exact_decode, max_image_side, max_decode_bytes, parse_background(background))
        self._cpu_threads = cpu_threads
        self._thresholds = thresholds
        self._all_classes = all_classes
        self._on_failure = on_failure
        self.model: VisionModel | None = None
        self.startup_s = 0.0

    def setup(self, device: str) -> None:
        """Load the model on `device`, prepare its engine, and warm up the common batch sizes."""
        try:
            self._set_up(device)
        except Exception as error:
            if self._on_failure is not None:
                self._on_failure(f"{type(error).__name__}: {error}")
            raise

    def _set_up(self, device: str) -> None:
        started = time.monotonic()
        if self._engine == "compile":
            from vit_api.model.compile_cache import keep_compiled_code

            keep_compiled_code()  # before torch is imported
        with collection_paused():
            from vit_api.model.model import VisionModel

        model = VisionModel(
            self.checkpoint,
            device,
            self._dtype,
            self._cpu_threads,
            self.max_batch_size,
            all_classes=self._all_classes,
        )
        model.prepare(self._engine)
        self.model, self.startup_s = model, time.monotonic() - started
        logger.info("%s is ready after %.1f s, engine %s", device, self.startup_s, model.engine.name)

    # No annotation on `request`: LitServe would have FastAPI parse the body as that type.
    def decode_request(self, request, **_: Any) -> NDArray[np.uint8]:  # type: ignore[no-untyped-def]
        """Decode an upload.

        Args:
            request: The upload or, as a stock LitServer passes it, a parsed body: a form with an upload `file` or
                JSON with base64 in `image`.

        Returns:
            uint8 [height, width, 3], resized as the checkpoint's processor does; pixels as they are.

        Raises:
            ViTError: The upload can't be decoded; its class says why.
        """
        if isinstance(request, Pixels):
            return request.as_array(self.checkpoint.preprocessing.pixel_shape)
        return images.decode(
            _upload_of(request),
            self.checkpoint.preprocessing,
            exact=self._decoding.exact,
            max_side=self._decoding.max_side,
            max_bytes=self._decoding.max_bytes,
            background=self._decoding.background,
        )

    def plan_frames(self, upload: bytes, count: int) -> FramePlan | None:
        """Choose up to `count` frames of an animation; None for a still picture.

        Raises:
            ViTError: The upload can't be decoded; its class says why.
        """
        return frames.plan_frames(upload, count, self._decoding)

    def decode_frames(
        self, upload: bytes, plan: FramePlan, wanted: Sequence[int]
    ) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
        """Decode frames as `decode_request` decodes an upload; yield the position of each in the plan, and its pixels.

        Raises:
            ViTError: A frame can't be decoded; its class says why.
        """
        return frames.decode_frames(upload, plan, wanted, self.checkpoint.preprocessing, self._decoding)

    def is_quick(self, upload: Upload) -> bool:
        """Return whether decoding takes no longer than passing the upload to another thread."""
        return isinstance(upload, Pixels) or image_limits.is_quick(upload)

    def estimate_cost(self, upload: Upload) -> Cost:
        """Return what decoding is expected to take."""
        return estimate(upload)

    def batch(self, inputs: Sequence[NDArray[np.uint8]]) -> Staged:
        """Gather images into one batch and send it to the device."""
        return self._loaded_model().stage(inputs)

    def predict(self, x: Staged, parts: int = 0) -> Launched:
        """Launch the model on a staged batch and the copy of its results; on a GPU, wait for neither.

        Args:
            x: The batch.
            parts: What its results must have besides the most probable classes, see `records.ALL_CLASSES`.
        """
        return self._loaded_model().launch(x, parts)

    def unbatch(self, output: Launched) -> list[Prediction]:
        """Wait for a launched batch, and split its results by image."""
        return self._loaded_model().collect(output)

    def is_done(self, output: Launched) -> bool:
        """Return whether `unbatch` has nothing to wait for."""
        return output.is_done()

    def has_working_device(self) -> bool:
        """Return whether the device still computes, after a failure."""
        return self._loaded_model().has_working_device()

    def free_memory(self) -> None:
        """Free cached device memory, after a batch that did not fit."""
        self._loaded_model().free_memory()

    def encode_response(
        self, output: Prediction, *, top_k: int | None = DEFAULT_TOP_K, threshold: float = 0.0
    ) -> dict[str, Any]:
        """Return the labels and probabilities of the most probable classes, most probable first.

        With thresholds, each has whether it is flagged, and the response whether any label of the model is.

        Args:
            output: The prediction.
            top_k: Maximum number of classes; None for all that the prediction has.
            threshold: Minimum probability of a class.
        """
        labels, scores = self.checkpoint.labels, output.scores(sigmoid=self.checkpoint.has_sigmoid)
        if self._thresholds is None and not threshold:
            top = zip(output.indices[:top_k], scores[:top_k], strict=True)
            return {"predictions": [{"label": labels[index], "confidence": round(p, SCORE_DIGITS)} for index, p in top]}
        encoded = self._encode(output.indices[:top_k], scores[:top_k])
        shown = [one for one in encoded if one["confidence"] >= threshold]
        if self._thresholds is None:
            return {"predictions": shown}
        return {"predictions": shown} | self._verdict(encoded, output.indices[len(encoded) :], scores[len(encoded) :])

    def _encode(self, indices: Sequence[int], scores: Sequence[float]) -> list[dict[str, Any]]:
        """Return classes as in responses, each flagged or not if there are thresholds."""
        labels, thresholds = self.checkpoint.labels, self._thresholds
        named = [(labels[index], round(p, SCORE_DIGITS)) for index, p in zip(indices, scores, strict=True)]
        if thresholds is None:
            return [{"label": label, "confidence": p} for label, p in named]
        return [{"label": label, "confidence": p, "flagged": thresholds.flags(label, p)} for label, p in named]

    def _verdict(
        self, encoded: Sequence[dict[str, Any]], indices: Sequence[int] = (), scores: Sequence[float] = ()
    ) -> dict[str, Any]:
        """Return whether any class is flagged, and by which thresholds.

        Args:
            encoded: Classes as in the response.
            indices: Further classes, which are not shown.
            scores: Their probabilities, the largest first.
        """
        thresholds = self._thresholds
        assert thresholds is not None
        is_flagged = any(one["flagged"] for one in encoded)
        if not is_flagged and scores and round(scores[0], SCORE_DIGITS) >= thresholds.lowest:
            is_flagged = thresholds.flags_any([self.checkpoint.labels[index] for index in indices], scores)
        return {"flagged": is_flagged, "thresholds_digest": thresholds.digest}

    def encode_frames(
        self,
        frames: Sequence[Frame],
        outputs: Sequence[Prediction],
        *,
        top_k: int | None = DEFAULT_TOP_K,
        threshold: float = 0.0,
    ) -> dict[str, Any]:
        """Return each label's largest probability in any frame, the `top_k` largest first, and the frames one by one.

        All classes of each prediction are compared, so these are the `top_k` largest of the model, too.
        """
        largest: dict[int, dict[str, Any]] = {}
        shown = []
        for frame, output in zip(frames, outputs, strict=True):
            encoded = self._encode(output.indices, output.scores(sigmoid=self.checkpoint.has_sigmoid))
            for index, one in zip(output.indices, encoded, strict=True):
                if index not in largest or one["confidence"] > largest[index]["confidence"]:
                    largest[index] = one
            top = [one for one in encoded[:top_k] if one["confidence"] >= threshold]
            shown.append({"index": frame.index, "time_ms": frame.time_ms, "predictions": top})
        ranked = sorted(largest.values(), key=lambda one: -one["confidence"])
        top = [one for one in ranked[:top_k] if one["confidence"] >= threshold]
        verdict = {} if self._thresholds is None else self._verdict(ranked)
        return {"predictions": top} | verdict | {"frames": shown}

    def _loaded_model(self) -> VisionModel:
        if self.model is None:
            raise RuntimeError("setup() was not called in this process.")
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
    raise BadRequest("Send the image in the form field 'file', or as base64 in the JSON field 'image'.")
