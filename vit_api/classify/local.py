"""Classifies image files in this process, with the server's LitAPI and settings but without HTTP.

Threads decode the next images while the device runs a batch. Knows nothing of how the results are printed or stored.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vit_api.checkpoints.int8 import INT8
from vit_api.classify.batches import BatchRunner, ImageResult
from vit_api.classify.decoder import Decoded, FileDecoder, ReadUpload, build_lit_api, to_classify_error
from vit_api.client.inputs import read_upload
from vit_api.client.lookahead import chunks, map_ahead
from vit_api.client.protocol import DEFAULT_TOP_K
from vit_api.client.results import Classification, ClassifiedFrame, ClassifyError, Outcome, ScoredLabel
from vit_api.environment.cores import available_cores
from vit_api.environment.devices import choose_devices
from vit_api.errors import InferenceFailed, OutOfDeviceMemory
from vit_api.ipc import records
from vit_api.lit_api import ViTAPI
from vit_api.settings import Settings
from vit_api.worker.outcomes import Failure

_OPENVINO = "openvino"
_AHEAD = 2
"""Number of batches that are decoded or being decoded ahead."""

Item = TypeVar("Item")


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
        lanes: Batches that may be computed at the same time. With several, each thread reads, decodes and
            computes whole batches, so that it never waits for another one.
    """

    def __init__(self, lit_api: ViTAPI, *, max_batch_size: int, threads: int, lanes: int = 1) -> None:
        self._lit_api = lit_api
        self._runner = BatchRunner(lit_api, max_batch_size)
        self._max_batch_size = max_batch_size
        self._threads = max(threads, lanes)
        # For all calls: torch prepares each thread, and each has its own memory.
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="classify")
        self._lanes = lanes

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
        decode = FileDecoder(self._lit_api, frames).decode
        with contextlib.closing(self._classify(reads, decode, Shown.of(top_k, threshold), survives=True)) as files:
            for _, outcome in files:
                yield outcome

    def classify_reads(
        self, reads: Iterable[ReadUpload], shown: Shown, frames: int = 1
    ) -> Generator[tuple[str | None, Outcome], None, None]:
        """Like `classify_many`, for files that are read from anywhere; yield each file's SHA-256 with its outcome.

        Raises:
            BrokenDevice: The device no longer computes.
        """
        decode = FileDecoder(self._lit_api, frames).decode
        with contextlib.closing(self._classify(reads, decode, shown)) as files:
            for file, outcome in files:
                yield file.sha256, outcome

    def classify_decoded(self, files: Iterable[Decoded], shown: Shown) -> Iterator[Outcome]:
        """Classify decoded files and yield an outcome for each, in order.

        Raises:
            BrokenDevice: The device no longer computes.
        """
        if self._lanes == 1:  # nothing to do in threads
            return (outcome for _, outcome in self._classify_files(files, shown, survives=False))
        return (outcome for _, outcome in self._classify(files, lambda file: file, shown))

    def _classify(
        self, items: Iterable[Item], decode: Callable[[Item], Decoded], shown: Shown, *, survives: bool = False
    ) -> Generator[tuple[Decoded, Outcome], None, None]:
        """Yield each file with its outcome, in order; in threads that decode, or that decode and compute.

        Args:
            items: What is decoded.
            decode: Decodes one of them.
            shown: Which classes are shown.
            survives: Whether a device that breaks is an error of each file, and not raised.
        """
        if self._lanes == 1:
            files = map_ahead(self._pool, decode, items, _AHEAD * self._max_batch_size)
            yield from self._classify_files(files, shown, survives)
            return

        def classify(some: list[Item]) -> list[tuple[Decoded, Outcome]]:
            return list(self._classify_files(map(decode, some), shown, survives))

        # One more than there are threads, so that none waits while outcomes are used.
        for outcomes in map_ahead(self._pool, classify, chunks(items, self._max_batch_size), self._threads + 1):
            yield from outcomes

    def _classify_files(
        self, files: Iterable[Decoded], shown: Shown, survives: bool
    ) -> Iterator[tuple[Decoded, Outcome]]:
        """Yield each file with its outcome, in order; files are taken from as batches need images."""
        waiting: deque[Decoded] = deque()
        of_file: list[ImageResult] = []
        for result in self._runner.run(_images_of(files, waiting), survives=survives):
            while not waiting[0].pixels:
                yield waiting[0], self._outcome(waiting.popleft(), (), shown)
            of_file.append(result)
            if len(of_file) == len(waiting[0].pixels):
                yield waiting[0], self._outcome(waiting.popleft(), of_file, shown)
                of_file = []
        for file in waiting:
            yield file, self._outcome(file, (), shown)

    def _outcome(self, file: Decoded, results: Sequence[ImageResult], shown: Shown) -> Outcome:
        if file.error is not None:
            return file.error
        predictions = []
        for outcome, _, _ in results:
            if isinstance(outcome, Failure):
                return _error_of(outcome)
            predictions.append(outcome)
        return self._classification(file, predictions, results[0], shown)

    def _classification(
        self, file: Decoded, predictions: Sequence[records.Prediction], first: ImageResult, shown: Shown
    ) -> Classification:
        if file.frames:
            encoded = self._lit_api.encode_frames(file.frames, predictions, **shown._asdict())
        else:
            encoded = self._lit_api.encode_response(predictions[0], **shown._asdict())
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
    settings: Settings,
    threads: int,
    images: int | None = None,
    *,
    shown: Shown,
    frames: int = 1,
    cores: int | None = None,
) -> LocalClassifier:
    """Load the configured model on the first of the configured devices.

    Args:
        settings: The server's settings; those of the model, the device and the images are used.
        threads: Number of decoding threads.
        images: The number of images, if it is known: the model is not prepared for larger batches.
        shown: Which classes will be shown.
        frames: Number of frames of an animation.
        cores: Cores to compute on, without a GPU; None: all that this process may use.

    Raises:
        CheckpointError: The model can't be found or can't be served.
        ValueError: There is no such device.
    """
    device = choose_devices(settings.device)[0]
    max_batch_size = settings.max_batch_size if images is None else min(settings.max_batch_size, images)
    has_several = images is None or images > max_batch_size
    if (lanes := _lanes(settings, device, cores) if has_several else 1) > 1:
        settings = settings.model_copy(update={"cpu_threads": settings.cpu_threads or 1})
    lit_api = build_lit_api(settings, max_batch_size, all_classes=shown.needs_all_classes(settings, frames))
    lit_api.setup(device)
    return LocalClassifier(lit_api, max_batch_size=max_batch_size, threads=threads, lanes=lanes)


def computes_in_lanes(settings: Settings) -> bool:
    """Return whether on the CPU each core computes batches of its own, and so decodes their files as well."""
    return settings.cpu_threads in (None, 1) and not _has_own_threads(settings)


def _has_own_threads(settings: Settings) -> bool:
    return settings.dtype == INT8 or settings.engine == _OPENVINO


def _lanes(settings: Settings, device: str, cores: int | None) -> int:
    """Return how many batches to compute at the same time.

    On the CPU, threads that each compute a batch never wait for each other, as those that share one do. OpenVINO has
    threads of its own.
    """
    if device != "cpu" or _has_own_threads(settings):
        return 1
    return max(1, (cores or available_cores()) // (settings.cpu_threads or 1))


def _labels(predictions: Iterable[dict[str, Any]]) -> tuple[ScoredLabel, ...]:
    return tuple(ScoredLabel(**prediction) for prediction in predictions)


def _images_of(files: Iterable[Decoded], waiting: deque[Decoded]) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of files, each of which is appended to those that wait for results before."""
    for file in files:
        waiting.append(file)
        yield from file.pixels


def _error_of(failure: Failure) -> ClassifyError:
    kind = OutOfDeviceMemory if failure.status == records.Status.OUT_OF_MEMORY else InferenceFailed
    return to_classify_error(kind(failure.reason))
