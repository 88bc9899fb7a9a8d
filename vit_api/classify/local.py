"""Classifies image files in this process, with the server's LitAPI and settings but without HTTP.

Threads decode the next images while the device runs a batch. Knows nothing of how the results are printed or stored.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_api.classify.decoder import Decoded, FileDecoder, ReadUpload, build_lit_api, to_classify_error
from vit_api.client.inputs import read_upload
from vit_api.client.lookahead import map_ahead
from vit_api.client.protocol import DEFAULT_TOP_K
from vit_api.client.results import Classification, ClassifiedFrame, ClassifyError, Outcome, ScoredLabel
from vit_api.environment.devices import choose_devices
from vit_api.errors import InferenceFailed, OutOfDeviceMemory
from vit_api.ipc import records
from vit_api.lit_api import ViTAPI
from vit_api.settings import Settings
from vit_api.worker import outcomes

_AHEAD = 2
"""Number of batches that are decoded or being decoded ahead."""


_Infer = Callable[[Sequence[NDArray[np.uint8]]], list[records.Prediction | ClassifyError]]


class _Result(NamedTuple):
    """The prediction of one image, the seconds that its batch took, and the images in that batch."""

    prediction: records.Prediction
    seconds: float
    batch_size: int


class Shown(NamedTuple):
    """Which classes of a prediction are shown; see `ViTAPI.encode_response`."""

    top_k: int | None
    threshold: float

    @classmethod
    def of(cls, top_k: int | str | None, threshold: float | None) -> Shown:
        """Return what the options of a client mean."""
        if top_k is None and threshold is None:
            top_k = DEFAULT_TOP_K
        return cls(top_k if isinstance(top_k, int) else None, threshold or 0.0)

    def needs_all_classes(self, settings: Settings, frames: int) -> bool:
        """Return whether predictions must have all classes, each of which becomes a number in Python."""
        is_short = self.top_k is not None and self.top_k <= records.MAX_TOP_K
        return not is_short or frames > 1 or settings.thresholds is not None


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
        """Classify image files and yield an outcome for each, in order, batch by batch; frames join the batches.

        If the device breaks, that file and the later ones have errors.
        """
        reads = (functools.partial(read_upload, path) for path in paths)
        for files in self._decoded_batches(reads, frames):
            yield from self._classify_files(files, Shown.of(top_k, threshold), self._infer_or_fail)

    def classify_reads(
        self, reads: Iterable[ReadUpload], shown: Shown, frames: int = 1
    ) -> Generator[tuple[str | None, Outcome], None, None]:
        """Like `classify_many`, for files that are read from anywhere; yield each file's SHA-256 with its outcome.

        Raises:
            BrokenDevice: The device no longer computes.
        """
        for files in self._decoded_batches(reads, frames):
            yield from zip((file.sha256 for file in files), self.classify_decoded(files, shown), strict=True)

    def classify_decoded(self, files: Sequence[Decoded], shown: Shown) -> Iterator[Outcome]:
        """Classify decoded files and yield an outcome for each, in order.

        Raises:
            BrokenDevice: The device no longer computes.
        """
        return self._classify_files(files, shown, self._infer)

    def _decoded_batches(self, reads: Iterable[ReadUpload], frames: int) -> Iterator[list[Decoded]]:
        """Yield files in groups of the batch size, which are decoded ahead."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        try:
            decoder = FileDecoder(self._lit_api, frames)
            decoded = map_ahead(pool, decoder.decode, reads, _AHEAD * self._max_batch_size)
            while files := list(itertools.islice(decoded, self._max_batch_size)):
                yield files
        finally:
            pool.shutdown(cancel_futures=True)

    def _classify_files(self, files: Sequence[Decoded], shown: Shown, infer: _Infer) -> Iterator[Outcome]:
        results = self._classify_images([pixels for file in files for pixels in file.pixels], infer)
        for file in files:
            of_file = list(itertools.islice(results, len(file.pixels)))
            failure = file.error or next((one for one in of_file if isinstance(one, ClassifyError)), None)
            yield failure or self._classification(file, [one for one in of_file if isinstance(one, _Result)], shown)

    def _classify_images(self, images: Sequence[NDArray[np.uint8]], infer: _Infer) -> Iterator[_Result | ClassifyError]:
        """Yield the result of each image, batch by batch."""
        for start in range(0, len(images), self._max_batch_size):
            started = time.monotonic()
            batch = images[start : start + self._max_batch_size]
            results = infer(batch)
            seconds = time.monotonic() - started
            for result in results:
                yield result if isinstance(result, ClassifyError) else _Result(result, seconds, len(batch))

    def _infer(self, images: Sequence[NDArray[np.uint8]]) -> list[records.Prediction | ClassifyError]:
        """Run the model as a worker does."""
        results = outcomes.finish(self._lit_api, outcomes.start(self._lit_api, images))
        return [_error_of(result) if isinstance(result, outcomes.Failure) else result for result in results]

    def _infer_or_fail(self, images: Sequence[NDArray[np.uint8]]) -> list[records.Prediction | ClassifyError]:
        """Run the model; no other process can take over if the device breaks."""
        try:
            return self._infer(images)
        except outcomes.BrokenDevice as error:
            return [to_classify_error(InferenceFailed(str(error)))] * len(images)

    def _classification(self, file: Decoded, results: Sequence[_Result], shown: Shown) -> Classification:
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


def load_local(
    settings: Settings, threads: int, images: int | None = None, *, shown: Shown, frames: int = 1
) -> LocalClassifier:
    """Load the configured model on the first of the configured devices.

    Args:
        settings: The server's settings; those of the model, the device and the images are used.
        threads: Number of decoding threads.
        images: The number of images, if it is known: the model is not prepared for larger batches.
        shown: Which classes will be shown.
        frames: Number of frames of an animation.

    Raises:
        CheckpointError: The model can't be found or can't be served.
        ValueError: There is no such device.
    """
    device = choose_devices(settings.device)[0]
    max_batch_size = settings.max_batch_size if images is None else min(settings.max_batch_size, images)
    lit_api = build_lit_api(settings, max_batch_size, all_classes=shown.needs_all_classes(settings, frames))
    lit_api.setup(device)
    return LocalClassifier(lit_api, max_batch_size=max_batch_size, threads=threads)


def _labels(predictions: Iterable[dict[str, Any]]) -> tuple[ScoredLabel, ...]:
    return tuple(ScoredLabel(**prediction) for prediction in predictions)


def _error_of(failure: outcomes.Failure) -> ClassifyError:
    kind = OutOfDeviceMemory if failure.status == records.Status.OUT_OF_MEMORY else InferenceFailed
    return to_classify_error(kind(failure.reason))
