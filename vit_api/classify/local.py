"""Classifies image files in this process, with the server's LitAPI and settings but without HTTP.

Threads decode the next images while the device runs a batch. Knows nothing of how the results are printed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.client.inputs import read_upload
from vit_api.client.lookahead import map_ahead
from vit_api.client.results import Classification, ClassifyError, Outcome, Rejected, ScoredLabel, ServerFailed
from vit_api.devices import choose_devices
from vit_api.errors import InferenceFailed, InternalError, OutOfDeviceMemory, ViTError
from vit_api.ipc import records
from vit_api.lit_api import ViTAPI
from vit_api.settings import Settings
from vit_api.worker import outcomes

_AHEAD = 2
"""Number of batches that are decoded or being decoded ahead."""


@dataclass(frozen=True)
class _Decoded:
    pixels: NDArray[np.uint8]
    seconds: float


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

    def classify_many(self, paths: Iterable[Path], top_k: int) -> Generator[Outcome, None, None]:
        """Classify image files and yield an outcome for each, in order, batch by batch."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        try:
            decoded = map_ahead(pool, self._decode, paths, _AHEAD * self._max_batch_size)
            while batch := list(itertools.islice(decoded, self._max_batch_size)):
                yield from self._classify_batch(batch, top_k)
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, path: Path) -> _Decoded | ClassifyError:
        started = time.monotonic()
        try:
            pixels = self._lit_api.decode_request(read_upload(path))
        except ClassifyError as error:
            return error
        except ViTError as error:
            return _to_classify_error(error)
        return _Decoded(pixels, time.monotonic() - started)

    def _classify_batch(self, batch: Sequence[_Decoded | ClassifyError], top_k: int) -> Iterator[Outcome]:
        started = time.monotonic()
        images = [image.pixels for image in batch if isinstance(image, _Decoded)]
        results = iter(self._infer(images) if images else [])
        inference_s = time.monotonic() - started
        for image in batch:
            result = next(results) if isinstance(image, _Decoded) else image
            if isinstance(result, ClassifyError):
                yield result
            elif isinstance(image, _Decoded):
                yield self._classification(result, top_k, image.seconds, inference_s, len(images))

    def _infer(self, images: Sequence[NDArray[np.uint8]]) -> list[records.Prediction | ClassifyError]:
        """Run the model as a worker does; no other process can take over if the device breaks."""
        try:
            results = outcomes.finish(self._lit_api, outcomes.start(self._lit_api, images))
        except outcomes.BrokenDevice as error:
            return [_to_classify_error(InferenceFailed(str(error)))] * len(images)
        return [_error_of(result) if isinstance(result, outcomes.Failure) else result for result in results]

    def _classification(
        self, result: records.Prediction, top_k: int, decode_s: float, inference_s: float, batch_size: int
    ) -> Classification:
        encoded = self._lit_api.encode_response(result, top_k=top_k)["predictions"]
        return Classification(
            predictions=tuple(ScoredLabel(**prediction) for prediction in encoded),
            cached=False,
            processing_time_ms=round((decode_s + inference_s) * 1000, 3),
            model=self._lit_api.checkpoint.name,
            inference_time_ms=round(inference_s * 1000, 3),
            batch_size=batch_size,
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
    max_batch_size = min(settings.max_batch_size, images)
    lit_api = ViTAPI(
        load_checkpoint(settings.model, settings.revision),
        dtype=settings.dtype,
        engine=settings.engine,
        max_image_side=settings.max_image_side,
        max_decode_bytes=settings.max_decode_bytes,
        exact_decode=settings.exact_decode,
        background=settings.background,
        cpu_threads=settings.cpu_threads,
        max_batch_size=max(2, max_batch_size),  # LitServe warns about batch hooks when the size is 1
    )
    lit_api.setup(device)
    return LocalClassifier(lit_api, max_batch_size=max_batch_size, threads=threads)


def _error_of(failure: outcomes.Failure) -> ClassifyError:
    kind = OutOfDeviceMemory if failure.status == records.Status.OUT_OF_MEMORY else InferenceFailed
    return _to_classify_error(kind(failure.reason))


def _to_classify_error(error: ViTError) -> ClassifyError:
    kind = ServerFailed if error.status >= InternalError.status else Rejected
    return kind(error.message, code=error.code)
