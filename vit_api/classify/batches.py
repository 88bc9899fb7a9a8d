"""Runs batches of images through the LitAPI. Knows nothing of files, and of results only whether there is one."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vit_api.client.lookahead import chunks
from vit_api.ipc.records import Status
from vit_api.lit_api import ViTAPI
from vit_api.worker import outcomes
from vit_api.worker.outcomes import Failure

Images = Sequence[NDArray[np.uint8]]
T = TypeVar("T")


class ImageResult(NamedTuple):
    """The outcome of one image, the seconds that its batch took, and the images in that batch."""

    outcome: outcomes.RunOutcome
    seconds: float
    batch_size: int


class BatchRunner:
    """Forms batches, runs them and yields the result of each image, in order.

    A batch is staged and launched while the one before it is on the device. On the CPU, several threads may run
    batches at the same time.

    Args:
        lit_api: The LitAPI; its `setup` has run.
        max_batch_size: Number of images in a batch, but for the last one.
    """

    def __init__(self, lit_api: ViTAPI, max_batch_size: int) -> None:
        self._lit_api = lit_api
        self._max_batch_size = max_batch_size

    def run(self, images: Iterator[NDArray[np.uint8]], *, survives: bool) -> Iterator[ImageResult]:
        """Yield the result of each image.

        Args:
            images: Taken from as batches need them, in the caller's thread.
            survives: Whether a device that breaks is a failure of each image, and not raised.

        Raises:
            BrokenDevice: The device no longer computes, and `survives` is false.
        """
        running: deque[tuple[float, outcomes.Started]] = deque()
        for batch in chunks(images, self._max_batch_size):
            running.append((time.monotonic(), self._start(batch, survives)))
            while len(running) > 1 or (running and outcomes.is_done(self._lit_api, running[0][1])):
                yield from self._finish(*running.popleft(), survives)
        while running:
            yield from self._finish(*running.popleft(), survives)

    def _start(self, images: Images, survives: bool) -> outcomes.Started:
        start = functools.partial(outcomes.start, self._lit_api, images)
        started = _unless_broken(start, survives)
        return outcomes.Started(images, time.monotonic(), started) if isinstance(started, Failure) else started

    def _finish(self, started_at: float, started: outcomes.Started, survives: bool) -> list[ImageResult]:
        size = len(started.images)
        finished = _unless_broken(functools.partial(outcomes.finish, self._lit_api, started), survives)
        of_images = [finished] * size if isinstance(finished, Failure) else finished
        seconds = time.monotonic() - started_at
        return [ImageResult(outcome, seconds, size) for outcome in of_images]


def _unless_broken(step: Callable[[], T], survives: bool) -> T | Failure:
    """Return what a step returns, or the failure of images whose device broke: no other process can take over."""
    try:
        return step()
    except outcomes.BrokenDevice as error:
        if not survives:
            raise
        return Failure(Status.FAILED, str(error))
