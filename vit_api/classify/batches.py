"""Runs batches of images through the LitAPI, several at a time. Knows nothing of files and results' forms."""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vit_api.client.lookahead import map_ahead
from vit_api.ipc.records import Status
from vit_api.lit_api import ViTAPI
from vit_api.worker import outcomes
from vit_api.worker.outcomes import Failure

Images = Sequence[NDArray[np.uint8]]
T = TypeVar("T")


class Result(NamedTuple):
    """The outcome of one image, the seconds that its batch took, and the images in that batch."""

    outcome: outcomes.RunOutcome
    seconds: float
    batch_size: int


class BatchRunner:
    """Forms batches, runs them and yields the result of each image, in order.

    Args:
        lit_api: The LitAPI; its `setup` has run.
        max_batch_size: Number of images in a batch, but for the last one.
        lanes: Batches that are computed at the same time, each in a thread. With one, there is no thread: a batch is
            staged and launched while the one before it is on the device.
    """

    def __init__(self, lit_api: ViTAPI, max_batch_size: int, lanes: int) -> None:
        self._lit_api = lit_api
        self._max_batch_size = max_batch_size
        self._lanes = lanes

    def run(self, images: Iterator[NDArray[np.uint8]], *, survives: bool) -> Iterator[Result]:
        """Yield the result of each image.

        Args:
            images: Taken from as batches need them, in the caller's thread.
            survives: Whether a device that breaks is a failure of each image, and not raised.

        Raises:
            BrokenDevice: The device no longer computes, and `survives` is false.
        """
        batches: Iterator[Images] = iter(lambda: list(itertools.islice(images, self._max_batch_size)), [])
        return self._run_in_threads(batches, survives) if self._lanes > 1 else self._run_here(batches, survives)

    def _run_in_threads(self, batches: Iterator[Images], survives: bool) -> Iterator[Result]:
        def run(batch: Images) -> list[Result]:
            started_at = time.monotonic()
            return self._finish(started_at, self._start(batch, survives), survives)

        pool = ThreadPoolExecutor(self._lanes, thread_name_prefix="batch")
        try:
            # One more than there are threads, so that none waits while results are used.
            yield from itertools.chain.from_iterable(map_ahead(pool, run, batches, self._lanes + 1))
        finally:
            pool.shutdown(cancel_futures=True)

    def _run_here(self, batches: Iterator[Images], survives: bool) -> Iterator[Result]:
        running: deque[tuple[float, outcomes.Started]] = deque()
        for batch in batches:
            running.append((time.monotonic(), self._start(batch, survives)))
            while len(running) > 1 or (running and outcomes.is_done(self._lit_api, running[0][1])):
                yield from self._finish(*running.popleft(), survives)
        while running:
            yield from self._finish(*running.popleft(), survives)

    def _start(self, images: Images, survives: bool) -> outcomes.Started:
        start = functools.partial(outcomes.start, self._lit_api, images)
        started = _unless_broken(start, survives)
        return outcomes.Started(images, time.monotonic(), started) if isinstance(started, Failure) else started

    def _finish(self, started_at: float, started: outcomes.Started, survives: bool) -> list[Result]:
        size = len(started.images)
        finished = _unless_broken(functools.partial(outcomes.finish, self._lit_api, started), survives)
        of_images = [finished] * size if isinstance(finished, Failure) else finished
        seconds = time.monotonic() - started_at
        return [Result(outcome, seconds, size) for outcome in of_images]


def _unless_broken(step: Callable[[], T], survives: bool) -> T | Failure:
    """Return what a step returns, or the failure of images whose device broke: no other process can take over."""
    try:
        return step()
    except outcomes.BrokenDevice as error:
        if not survives:
            raise
        return Failure(Status.FAILED, str(error))
