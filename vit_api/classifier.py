"""The HTTP half's core: an upload goes in, a prediction comes out.

Takes a slot, decodes into it, queues it and waits for the worker's answer. Knows nothing of HTTP or of the worker
but the slot table and the records.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vit_api.errors import DeadlineExceeded, InferenceFailed, InternalError, NotReady, Overloaded, ViTError
from vit_api.records import Answer, Prediction, RecordPipe, Request, Status, unpack_answers
from vit_api.slots import SlotRange
from vit_api.workers import WorkerBoard

logger = logging.getLogger(__name__)

_ANSWERS_PER_READ = 1024


class Decoder(Protocol):
    """What turns an upload into pixels: a LitAPI."""

    def decode_request(self, request: bytes) -> NDArray[np.uint8]:
        """Return uint8 [height, width, 3]."""


@dataclass(frozen=True)
class Classification:
    """What the model said of one upload, and how long that took.

    Attributes:
        prediction: The most probable classes.
        batch_size: Images in the batch that it was computed in.
        queue_s: Seconds from the queue's entry to the batch's start.
        inference_s: Seconds that the batch took.
        is_cached: Whether it was answered without the model.
    """

    prediction: Prediction
    batch_size: int
    queue_s: float
    inference_s: float
    is_cached: bool = False


@dataclass(frozen=True)
class _Flight:
    """An image on its way: who waits for it, and what ends the wait at its deadline."""

    waiter: asyncio.Future[Classification]
    timer: asyncio.TimerHandle


class Classifier:
    """Classify uploads on the workers. For one HTTP process, on its event loop.

    Args:
        decoder: Decodes uploads, in `decode_threads` threads.
        slots: This process's slots.
        board: Tells whether a worker is ready.
        requests: Carries records to the workers.
        answers: Brings this process's answers.
    """

    def __init__(
        self,
        decoder: Decoder,
        slots: SlotRange,
        board: WorkerBoard,
        requests: RecordPipe,
        answers: RecordPipe,
        *,
        decode_threads: int,
    ) -> None:
        self._decoder = decoder
        self._slots = slots
        self._table = slots.table
        self._board = board
        self._requests = requests
        self._answers = answers
        self._decode_threads = decode_threads
        self._flights: dict[int, _Flight] = {}

    def start(self) -> None:
        """Start the decoding threads and listen for answers, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(self._decode_threads, thread_name_prefix="decode")
        self._loop.add_reader(self._answers.fileno(), self._read_answers)

    def stop(self) -> None:
        """Stop listening; what is still being decoded goes nowhere."""
        self._loop.remove_reader(self._answers.fileno())
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def classify(self, upload: bytes, deadline: float) -> Classification:
        """Classify one upload.

        Args:
            upload: An image file's bytes.
            deadline: When the answer must be there, in seconds of the monotonic clock.

        Raises:
            NotReady: No worker has started yet.
            Overloaded: Every slot is taken.
            DeadlineExceeded: The deadline passed first.
            InferenceFailed: The model raised.
            ViTError: The upload can't be decoded.
        """
        if self._board.ready_count() == 0:
            raise NotReady("the model is still loading; try again soon")
        taken = self._slots.take(deadline)
        if taken is None:
            raise Overloaded("the server is busy: its queue is full; try again soon")
        slot, generation = taken
        flight = self._take_off(slot, deadline)
        self._executor.submit(self._decode_into, slot, generation, upload)
        try:
            return await flight.waiter
        except asyncio.CancelledError:
            # The slot may be free by now, or even another image's, if the answer came just before.
            if self._flights.get(slot) is flight:
                self._table.abandon(slot)
            raise

    def _take_off(self, slot: int, deadline: float) -> _Flight:
        delay_s = max(0.0, deadline - time.monotonic())
        timer = self._loop.call_later(delay_s, self._expire, slot)
        flight = self._flights[slot] = _Flight(self._loop.create_future(), timer)
        return flight

    def _expire(self, slot: int) -> None:
        """Answer the waiter at its deadline. The slot stays taken until its worker or decoder lets go of it."""
        self._table.abandon(slot)
        _fail(self._flights[slot].waiter, DeadlineExceeded("no answer within the time limit; try again later"))

    def _decode_into(self, slot: int, generation: int, upload: bytes) -> None:
        """Decode an upload and queue it; in a decoding thread, which owns the slot's pixels meanwhile.

        The request's record is written here: one wake-up of the event loop less for each image.
        """
        try:
            self._check_wanted(slot)
            self._table.pixels[slot] = self._decoder.decode_request(upload)
            self._check_wanted(slot)
            self._table.queue(slot, time.monotonic())
            self._requests.write([Request(slot, generation).pack()])
        except ViTError as error:
            self._land_from_thread(slot, error)
        except Exception:
            logger.exception("decoding failed in an unforeseen way")
            self._land_from_thread(slot, InternalError("the server failed to decode this image"))

    def _check_wanted(self, slot: int) -> None:
        if self._table.is_abandoned(slot):
            raise DeadlineExceeded("nobody waits for this image any more")

    def _land_from_thread(self, slot: int, error: ViTError) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._land, slot, error)

    def _read_answers(self) -> None:
        for answer in unpack_answers(self._answers.read(_ANSWERS_PER_READ)):
            if self._table.is_current(answer.slot, answer.generation):
                self._land(answer.slot, _outcome_of(answer))

    def _land(self, slot: int, outcome: Classification | ViTError) -> None:
        """Free the slot and tell its waiter, if there is still one."""
        self._slots.release(slot)
        flight = self._flights.pop(slot)
        flight.timer.cancel()
        if isinstance(outcome, ViTError):
            _fail(flight.waiter, outcome)
        elif not flight.waiter.done():
            flight.waiter.set_result(outcome)


def _fail(waiter: asyncio.Future[Classification], error: ViTError) -> None:
    if not waiter.done():
        waiter.set_exception(error)


def _outcome_of(answer: Answer) -> Classification | ViTError:
    match answer.status:
        case Status.OK:
            return Classification(answer.prediction, answer.batch_size, answer.queue_s, answer.inference_s)
        case Status.SKIPPED:
            return DeadlineExceeded("no answer within the time limit; try again later")
        case Status.FAILED:
            return InferenceFailed("the model failed on this image; the server's log says why")
