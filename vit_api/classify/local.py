"""Classifies image files in this process, with the server's LitAPI and settings but without HTTP.

Threads decode the next images while the device runs a batch. Knows nothing of how the results are printed.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.client.inputs import read_upload
from vit_api.client.lookahead import map_ahead
from vit_api.client.protocol import DEFAULT_TOP_K
from vit_api.client.results import (
    Classification,
    ClassifiedFrame,
    ClassifyError,
    Outcome,
    Rejected,
    ScoredLabel,
    ServerFailed,
)
from vit_api.decoding.frames import STILL, Frame
from vit_api.devices import choose_devices
from vit_api.errors import InferenceFailed, InternalError, OutOfDeviceMemory, ViTError
from vit_api.ipc import records
from vit_api.lit_api import ViTAPI
from vit_api.settings import Settings
from vit_api.thresholds import Thresholds
from vit_api.worker import outcomes

_AHEAD = 2
"""Number of batches that are decoded or being decoded ahead."""


@dataclass(frozen=True)
class _Decoded:
    """The pixels of an image, or of several frames of it.

    Attributes:
        pixels: uint8 [height, width, 3] of each.
        seconds: How long decoding took.
        frames: The frames, if several were requested.
    """

    pixels: Sequence[NDArray[np.uint8]]
    seconds: float
    frames: Sequence[Frame] = ()


class _Result(NamedTuple):
    """The prediction of one image, the seconds that its batch took, and the images in that batch."""

    prediction: records.Prediction
    seconds: float
    batch_size: int


class _Shown(NamedTuple):
    """Which classes of a prediction are shown; see `ViTAPI.encode_response`."""

    top_k: int | None
    threshold: float

    @classmethod
    def of(cls, top_k: int | str | None, threshold: float | None) -> _Shown:
        """Return what the options of a client mean."""
        if top_k is None and threshold is None:
            top_k = DEFAULT_TOP_K
        return cls(top_k if isinstance(top_k, int) else None, threshold or 0.0)


class LocalClassifier:
    """A model in this process.

    Args:
        lit_api: The LitAPI; its `setup` has run.
        max_batch_size: Maximum batch size.
        threads: Number of decoding threads.
    """

    def __init__(self, lit_api: ViTAPI, *, max_batch_size: int, threads: int) -> None:
        self._lit_api = lit_api
        self._max_batch_size = max_batch_size
        self._threads = threads

    def classify_many(
        self,
        paths: Iterable[Path],
        top_k: int | str | None = None,
        frames: int = 1,
        *,
        threshold: float | None = None,
    ) -> Generator[Outcome, None, None]:
        """Classify image files and yield an outcome for each, in order, batch by batch; frames join the batches."""
        shown = _Shown.of(top_k, threshold)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        try:
            decode = functools.partial(self._decode, frames=frames)
            decoded = map_ahead(pool, decode, paths, _AHEAD * self._max_batch_size)
            while files := list(itertools.islice(decoded, self._max_batch_size)):
                yield from self._classify_files(files, shown)
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, path: Path, frames: int) -> _Decoded | ClassifyError:
        started = time.monotonic()
        try:
            upload = read_upload(path)
            plan = self._lit_api.plan_frames(upload, frames) if frames > 1 else None
            if plan is None:
                pixels = [self._lit_api.decode_request(upload)]
            else:
                pixels = [one for _, one in self._lit_api.decode_frames(upload, plan, range(len(plan.frames)))]
        except ClassifyError as error:
            return error
        except ViTError as error:
            return _to_classify_error(error)
        chosen = () if frames == 1 else STILL if plan is None else plan.frames
        return _Decoded(pixels, time.monotonic() - started, chosen)

    def _classify_files(self, files: Sequence[_Decoded | ClassifyError], shown: _Shown) -> Iterator[Outcome]:
        images = [pixels for file in files if isinstance(file, _Decoded) for pixels in file.pixels]
        results = self._classify_images(images)
        for file in files:
            if isinstance(file, ClassifyError):
                yield file
                continue
            of_file = list(itertools.islice(results, len(file.pixels)))
            failure = next((one for one in of_file if isinstance(one, ClassifyError)), None)
            yield failure or self._classification(file, [one for one in of_file if isinstance(one, _Result)], shown)

    def _classify_images(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[_Result | ClassifyError]:
        """Yield the result of each image, batch by batch."""
        for start in range(0, len(images), self._max_batch_size):
            started = time.monotonic()
            batch = images[start : start + self._max_batch_size]
            results = self._infer(batch)
            seconds = time.monotonic() - started
            for result in results:
                yield result if isinstance(result, ClassifyError) else _Result(result, seconds, len(batch))

    def _infer(self, images: Sequence[NDArray[np.uint8]]) -> list[records.Prediction | ClassifyError]:
        """Run the model as a worker does; no other process can take over if the device breaks."""
        try:
            results = outcomes.finish(self._lit_api, outcomes.start(self._lit_api, images))
        except outcomes.BrokenDevice as error:
            return [_to_classify_error(InferenceFailed(str(error)))] * len(images)
        return [_error_of(result) if isinstance(result, outcomes.Failure) else result for result in results]

    def _classification(self, file: _Decoded, results: Sequence[_Result], shown: _Shown) -> Classification:
        predictions = [result.prediction for result in results]
        if file.frames:
            encoded = self._lit_api.encode_frames(file.frames, predictions, **shown._asdict())
        else:
            encoded = self._lit_api.encode_response(predictions[0], **shown._asdict())
        first = results[0]
        return Classification(
            predictions=_labels(encoded["predictions"]),
            cached=False,
            processing_time_ms=round((file.seconds + first.seconds) * 1000, 3),
            model=self._lit_api.checkpoint.name,
            inference_time_ms=round(first.seconds * 1000, 3),
            batch_size=first.batch_size,
            flagged=encoded.get("flagged"),
            thresholds_digest=encoded.get("thresholds_digest"),
            frames=tuple(
                ClassifiedFrame(**(frame | {"predictions": _labels(frame["predictions"])}))
                for frame in encoded.get("frames", ())
            ),
        )


def load_local(settings: Settings, threads: int, images: int) -> LocalClassifier:
    """Load the configured model on the first of the configured devices.

    Args:
        settings: The server's settings; those of the model, the device and the images are used.
        threads: Number of decoding threads.
        images: The number of images: the model is not prepared for larger batches.

    Raises:
        CheckpointError: The model can't be found or can't be served.
        ValueError: There is no such device.
    """
    device = choose_devices(settings.device)[0]
    checkpoint = load_checkpoint(settings.model, settings.revision, served_name=settings.model_name)
    thresholds = settings.thresholds
    max_batch_size = min(settings.max_batch_size, images)
    lit_api = ViTAPI(
        checkpoint,
        dtype=settings.dtype,
        engine=settings.engine,
        max_image_side=settings.max_image_side,
        max_decode_bytes=settings.max_decode_bytes,
        exact_decode=settings.exact_decode,
        background=settings.background,
        cpu_threads=settings.cpu_threads,
        thresholds=None if thresholds is None else Thresholds.load(thresholds, checkpoint.labels),
        all_classes=True,
        max_batch_size=max(2, max_batch_size),  # LitServe warns about batch hooks when the size is 1
    )
    lit_api.setup(device)
    return LocalClassifier(lit_api, max_batch_size=max_batch_size, threads=threads)


def _labels(predictions: Iterable[dict[str, Any]]) -> tuple[ScoredLabel, ...]:
    return tuple(ScoredLabel(**prediction) for prediction in predictions)


def _error_of(failure: outcomes.Failure) -> ClassifyError:
    kind = OutOfDeviceMemory if failure.status == records.Status.OUT_OF_MEMORY else InferenceFailed
    return _to_classify_error(kind(failure.reason))


def _to_classify_error(error: ViTError) -> ClassifyError:
    kind = ServerFailed if error.status >= InternalError.status else Rejected
    return kind(error.message, code=error.code)
