"""Classifies image files in this process, with the server's LitAPI and settings but without HTTP.

Threads decode the next images while the device runs a batch. Knows nothing of how the results are printed or stored.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
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
        with contextlib.closing(self._decoded(reads, frames)) as files:
            for _, outcome in self._classify_files(files, Shown.of(top_k, threshold), survives=True):
                yield outcome

    def classify_reads(
        self, reads: Iterable[ReadUpload], shown: Shown, frames: int = 1
    ) -> Generator[tuple[str | None, Outcome], None, None]:
        """Like `classify_many`, for files that are read from anywhere; yield each file's SHA-256 with its outcome.

        Raises:
            BrokenDevice: The device no longer computes.
        """
        with contextlib.closing(self._decoded(reads, frames)) as files:
            for file, outcome in self._classify_files(files, shown):
                yield file.sha256, outcome

    def classify_decoded(self, files: Iterable[Decoded], shown: Shown) -> Iterator[Outcome]:
        """Classify decoded files and yield an outcome for each, in order.

        Raises:
            BrokenDevice: The device no longer computes.
        """
        return (outcome for _, outcome in self._classify_files(files, shown))

    def _decoded(self, reads: Iterable[ReadUpload], frames: int) -> Generator[Decoded, None, None]:
        """Yield files that are decoded ahead, in order."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        try:
            decoder = FileDecoder(self._lit_api, frames)
            yield from map_ahead(pool, decoder.decode, reads, _AHEAD * self._max_batch_size)
        finally:
            pool.shutdown(cancel_futures=True)

    def _classify_files(
        self, files: Iterable[Decoded], shown: Shown, *, survives: bool = False
    ) -> Iterator[tuple[Decoded, Outcome]]:
        """Yield each file with its outcome, in order.

        Args:
            files: Taken from as batches need images.
            shown: Which classes are shown.
            survives: Whether a device that breaks is an error of each file, and not raised.
        """
        waiting: deque[Decoded] = deque()
        of_file: list[_Result | ClassifyError] = []
        for result in self._classify_images(_images_of(files, waiting), survives):
            while not waiting[0].pixels:
                yield waiting[0], self._outcome(waiting.popleft(), (), shown)
            of_file.append(result)
            if len(of_file) == len(waiting[0].pixels):
                yield waiting[0], self._outcome(waiting.popleft(), of_file, shown)
                of_file = []
        for file in waiting:
            yield file, self._outcome(file, (), shown)

    def _outcome(self, file: Decoded, results: Sequence[_Result | ClassifyError], shown: Shown) -> Outcome:
        failure = file.error or next((one for one in results if isinstance(one, ClassifyError)), None)
        return failure or self._classification(file, [one for one in results if isinstance(one, _Result)], shown)

    def _classify_images(
        self, images: Iterator[NDArray[np.uint8]], survives: bool
    ) -> Iterator[_Result | ClassifyError]:
        """Yield the result of each image. A batch is staged and launched while the one before it is on the device."""
        running: deque[tuple[float, outcomes.Started]] = deque()
        while batch := list(itertools.islice(images, self._max_batch_size)):
            running.append((time.monotonic(), self._start(batch, survives)))
            while len(running) > 1 or (running and outcomes.is_done(self._lit_api, running[0][1])):
                yield from self._finish(*running.popleft(), survives)
        while running:
            yield from self._finish(*running.popleft(), survives)

    def _start(self, images: Sequence[NDArray[np.uint8]], survives: bool) -> outcomes.Started:
        try:
            return outcomes.start(self._lit_api, images)
        except outcomes.BrokenDevice as error:
            if not survives:
                raise
            return outcomes.Started(images, time.monotonic(), _broken(error))

    def _finish(
        self, started_at: float, started: outcomes.Started, survives: bool
    ) -> Iterator[_Result | ClassifyError]:
        size = len(started.images)
        results: Sequence[outcomes.RunOutcome]
        try:
            results = outcomes.finish(self._lit_api, started)
        except outcomes.BrokenDevice as error:
            if not survives:
                raise
            results = [_broken(error)] * size
        seconds = time.monotonic() - started_at
        for result in results:
            yield _error_of(result) if isinstance(result, outcomes.Failure) else _Result(result, seconds, size)

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


def _images_of(files: Iterable[Decoded], waiting: deque[Decoded]) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of files, each of which is appended to those that wait for results before."""
    for file in files:
        waiting.append(file)
        yield from file.pixels


def _broken(error: outcomes.BrokenDevice) -> outcomes.Failure:
    """Return the failure of images whose device broke: no other process can take over."""
    return outcomes.Failure(records.Status.FAILED, str(error))


def _error_of(failure: outcomes.Failure) -> ClassifyError:
    kind = OutOfDeviceMemory if failure.status == records.Status.OUT_OF_MEMORY else InferenceFailed
    return to_classify_error(kind(failure.reason))
