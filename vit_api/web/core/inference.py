"""The HTTP half's way to the workers: an upload goes in, a worker's answer comes out.

Takes a slot, decodes into it, queues it and waits for the answer. Knows nothing of HTTP, of caching, or of the worker
but the slot table and the records.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vit_api import metrics
from vit_api.deadline import Deadline
from vit_api.decoding.uploads import Upload
from vit_api.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InternalError,
    NotReady,
    OutOfDeviceMemory,
    Overloaded,
    ViTError,
    WorkersGone,
)
from vit_api.ipc.metrics_board import MetricsWriter
from vit_api.ipc.records import AnswerRecord, RecordPipe, RequestRecord, Status, unpack_answers
from vit_api.ipc.slots import MAX_DEATHS, SlotRange
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.web.core.service_rate import ServiceRate

logger = logging.getLogger(__name__)

_ANSWERS_PER_READ = 1024
_UNWANTED = "nobody waits for this image any more"
_GONE = "the model's processes died and can't be started again; the server stops"


class Decoder(Protocol):
    """What turns an upload into pixels: a LitAPI."""

    def decode_request(self, request: Upload) -> NDArray[np.uint8]:
        """Return uint8 [height, width, 3]."""

    def is_quick(self, upload: Upload) -> bool:
        """Tell whether decoding takes so little time that the event loop may do it."""


class _Job:
    """One image that is under way.

    Attributes:
        waiter: Gets the outcome.
        upload: Until it is decoded; None if nobody wants it any more.
        decode_s: What its decoding took, once it is done.
    """

    __slots__ = ("decode_s", "upload", "waiter")

    def __init__(self, upload: Upload, waiter: asyncio.Future[AnswerRecord]) -> None:
        self.upload: Upload | None = upload
        self.waiter = waiter
        self.decode_s: float | None = None

    def take_upload(self) -> Upload:
        """Return the upload and forget it, since its memory is needed."""
        upload, self.upload = self.upload, None
        if upload is None:
            raise DeadlineExceeded(_UNWANTED)
        return upload


class InferenceClient:
    """Run uploads on the workers. For one HTTP process, on its event loop.

    Args:
        decoder: Decodes uploads, in `decode_threads` threads.
        slots: This process's slots.
        board: Tells whether a worker is ready.
        requests: Carries records to the workers.
        answers: Brings this process's answers.
        metrics_writer: Counts.
    """

    def __init__(
        self,
        decoder: Decoder,
        slots: SlotRange,
        board: WorkerBoard,
        requests: RecordPipe,
        answers: RecordPipe,
        *,
        metrics_writer: MetricsWriter,
        decode_threads: int,
    ) -> None:
        self._decoder = decoder
        self._slots = slots
        self._table = slots.table
        self._board = board
        self._requests = requests
        self._answers = answers
        self._decode_threads = decode_threads
        self._decode_times = metrics_writer.histogram(metrics.DECODE)
        self._jobs: dict[int, _Job] = {}
        self._rate = ServiceRate()
        self._deaths: dict[int, int] = {}  # of workers, while they had the slot's image

    def start(self) -> None:
        """Start the decoding threads and listen for answers, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(self._decode_threads, thread_name_prefix="decode")
        self._loop.add_reader(self._answers.fileno(), self._read_answers)

    def stop(self) -> None:
        """Stop listening; what is still being decoded goes nowhere."""
        self._loop.remove_reader(self._answers.fileno())
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def infer(self, upload: Upload, deadline: Deadline) -> tuple[AnswerRecord, float]:
        """Return the workers' answer for one upload, whose status is OK, and the seconds that its decoding took.

        Whoever waits keeps the deadline and cancels this; here it only keeps the image out of a batch after it.

        Args:
            upload: What to classify.
            deadline: Until when the answer is wanted; may move meanwhile.

        Raises:
            NotReady: No worker has started yet.
            Overloaded: Every slot is taken.
            DeadlineExceeded: A worker found the deadline passed.
            InferenceFailed: The model raised.
            ViTError: The upload can't be decoded.
        """
        if not self._board.takes_images():
            gone = self._board.is_gone()
            raise WorkersGone(_GONE) if gone else NotReady("the model is still loading; try again soon")
        is_quick = self._decoder.is_quick(upload)
        taken = self._slots.take(deadline.at)
        if taken is None:
            wait_s = self._rate.seconds_for(len(self._jobs))
            raise Overloaded("the server is busy: its queue is full; try again later", wait_s)
        slot, generation = taken
        job = self._jobs[slot] = _Job(upload, self._loop.create_future())
        deadline.follow(functools.partial(self._extend, slot, job))
        if is_quick:
            self._decode_into(slot, generation, job)
        else:
            self._executor.submit(self._decode_into, slot, generation, job)
        try:
            return await job.waiter, job.decode_s or 0.0
        except asyncio.CancelledError:
            job.upload = None  # the decoding thread may be long in coming to it
            # The slot may be free by now, or even another image's, if the answer came just before.
            if self._jobs.get(slot) is job:
                self._table.abandon(slot)
            raise
        finally:
            deadline.follow(None)

    def _extend(self, slot: int, job: _Job, at: float) -> None:
        if self._jobs.get(slot) is job:
            self._table.extend(slot, at)

    def _decode_into(self, slot: int, generation: int, job: _Job) -> None:
        """Decode an upload and queue it; mostly in a decoding thread, which owns the slot's pixels meanwhile.

        The request's record is written here: one wake-up of the event loop less for each image.
        """
        try:
            self._check_wanted(slot)
            upload = job.take_upload()
            began_at = time.monotonic()
            self._table.pixels[slot] = self._decoder.decode_request(upload)
            self._check_wanted(slot)
            decoded_at = time.monotonic()
            job.decode_s = decoded_at - began_at
            self._table.queue(slot, decoded_at)
            self._requests.write([RequestRecord(slot, generation).pack()])
        except ViTError as error:
            self._land_from_thread(slot, error)
        except Exception:
            logger.exception("decoding failed in an unforeseen way")
            self._land_from_thread(slot, InternalError("the server failed to decode this image"))

    def _check_wanted(self, slot: int) -> None:
        if self._table.is_abandoned(slot):
            raise DeadlineExceeded(_UNWANTED)

    def _land_from_thread(self, slot: int, error: ViTError) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._land, slot, error)

    def _read_answers(self) -> None:
        for answer in unpack_answers(self._answers.read(_ANSWERS_PER_READ)):
            try:
                self._take(answer)
            except Exception:  # one answer must not cost the others
                logger.exception("slot %d is in an unforeseen state", answer.slot)

    def _take(self, answer: AnswerRecord) -> None:
        if not self._table.is_current(answer.slot, answer.generation):
            return
        is_lost = answer.status == Status.LOST
        if is_lost and not self._table.is_held(answer.slot):
            return  # it was queued again already
        if is_lost and self._is_worth_another_try(answer.slot):
            self._try_again(answer)
        else:
            self._land(answer.slot, _error_of(answer) or answer)

    def _is_worth_another_try(self, slot: int) -> bool:
        return slot in self._jobs and self._deaths.get(slot, 0) < MAX_DEATHS and not self._table.is_abandoned(slot)

    def _try_again(self, answer: AnswerRecord) -> None:
        """Queue an image again whose worker died; after the second death alone, since the image may be the reason."""
        slot = answer.slot
        deaths = self._deaths[slot] = self._deaths.get(slot, 0) + 1
        self._table.requeue(slot, isolated=deaths == MAX_DEATHS)
        self._requests.write([RequestRecord(slot, answer.generation).pack()])

    def _land(self, slot: int, outcome: AnswerRecord | ViTError) -> None:
        """Free the slot and tell its waiter, if there is still one."""
        self._slots.release(slot)
        self._rate.add()
        self._deaths.pop(slot, None)
        job = self._jobs.pop(slot, None)
        if job is None:  # the image of a predecessor of this process, which died
            return
        if job.decode_s is not None:
            self._decode_times.observe(job.decode_s)
        if job.waiter.done():
            return
        if isinstance(outcome, ViTError):
            job.waiter.set_exception(outcome)
        else:
            job.waiter.set_result(outcome)


def _error_of(answer: AnswerRecord) -> ViTError | None:
    match answer.status:
        case Status.OK:
            return None
        case Status.SKIPPED:
            return DeadlineExceeded("no answer within the time limit; try again later")
        case Status.FAILED:
            return InferenceFailed("the model failed on this image; the server's log says why")
        case Status.OUT_OF_MEMORY:
            return OutOfDeviceMemory("the device's memory does not suffice for this image now; try again later")
        case Status.LOST:
            return InferenceFailed("the process that ran the model died of this image, or each time beside it")
        case Status.UNAVAILABLE:
            return WorkersGone(_GONE)
