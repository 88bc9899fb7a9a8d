"""The HTTP half's way to the workers: an upload goes in, a worker's answer comes out.

Takes a slot, decodes into it, queues it and waits for the answer. Knows nothing of HTTP or caching, and of the workers
only the slot table and the records.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vit_api import metrics
from vit_api.decoding.cost import Cost
from vit_api.decoding.frames import FramePlan
from vit_api.decoding.uploads import Upload
from vit_api.errors import (
    BadRequest,
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
from vit_api.ipc.records import AnswerRecord, Prediction, RecordPipe, RequestRecord, Status, unpack_answers
from vit_api.ipc.slots import MAX_DEATHS, OwnerSlots
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.urgency import Urgency
from vit_api.web.core.caller import ANY, Caller
from vit_api.web.core.decode_turns import DecodeTurns
from vit_api.web.core.service_rate import ServiceRate
from vit_api.web.core.single_flight import FlightDeadline, expire_at
from vit_api.web.core.slot_shares import SlotShares

logger = logging.getLogger(__name__)

_ANSWERS_PER_READ = 1024
_ABANDONED = "The request was abandoned before its image was processed."
_FULL = (
    "The server is overloaded: its queue is full. Try again later.",
    "The server is overloaded: the part of its queue for requests of low urgency is full. Try again later.",
)
"""By urgency."""
GONE = "The inference workers crashed and can't be restarted. The server is shutting down; retry shortly."
"""For images that no worker will take."""


_Send = Callable[[Urgency, bytes], None]
"""Sends a packed request record to the workers."""


class Decoder(Protocol):
    """Turns an upload into pixels; implemented by the LitAPI."""

    def decode_request(self, request: Upload) -> NDArray[np.uint8]:
        """Return uint8 [height, width, 3]."""

    def is_quick(self, upload: Upload) -> bool:
        """Return whether decoding is so short that the event loop may do it."""

    def estimate_cost(self, upload: Upload) -> Cost:
        """Return what decoding is expected to take."""

    def decode_frames(
        self, upload: bytes, plan: FramePlan, wanted: Sequence[int]
    ) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
        """Yield the position of each wanted frame, and its pixels."""


class _Job:
    """One image in flight.

    Attributes:
        waiter: Gets the outcome.
        upload: The image until it is decoded; None once it is abandoned.
        caller: Who sent it.
        decode_s: Seconds that decoding took, once it is done.
    """

    __slots__ = ("caller", "decode_s", "upload", "waiter")

    def __init__(self, upload: Upload, waiter: asyncio.Future[AnswerRecord], caller: Caller) -> None:
        self.upload: Upload | None = upload
        self.waiter = waiter
        self.caller = caller
        self.decode_s: float | None = None

    def take_upload(self) -> Upload:
        """Return the upload and drop the reference to it, to free its memory early."""
        upload, self.upload = self.upload, None
        if upload is None:
            raise DeadlineExceeded(_ABANDONED)
        return upload


class _TakenFrame(NamedTuple):
    """The slot of a frame, its generation, and the frame's job."""

    slot: int
    generation: int
    job: _Job


class InferenceClient:
    """Run uploads on the workers. For one HTTP process, on its event loop.

    Args:
        decoder: Decodes uploads.
        slots: This process's slots.
        worker_board: Shows whether a worker is ready.
        requests: Carry request records to the workers, by urgency.
        answers: Carries the workers' answers to this process.
        metrics_writer: Records decoding times.
        turns: The decoding threads; the caller that made them starts and stops them.
        gone: What callers are told when no further worker will be started.
    """

    def __init__(
        self,
        decoder: Decoder,
        slots: OwnerSlots,
        worker_board: WorkerBoard,
        requests: Sequence[RecordPipe],
        answers: RecordPipe,
        *,
        metrics_writer: MetricsWriter,
        turns: DecodeTurns,
        gone: str = GONE,
    ) -> None:
        self._decoder = decoder
        self._slots = slots
        self._pixels = slots.table.pixels
        self._worker_board = worker_board
        self._requests = requests
        self._answers = answers
        self._turns = turns
        self._gone = gone
        self._decode_times = metrics_writer.histogram(metrics.DECODE)
        self._jobs: dict[int, _Job] = {}
        self._shares = SlotShares()
        self._rates = [ServiceRate() for _ in Urgency]
        self._unsent: list[tuple[Urgency, bytes]] = []
        self._deaths: dict[int, int] = {}  # by slot: workers that died while they held its image

    def start(self) -> None:
        """Listen for answers, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._answers.fileno(), self._read_answers)

    def stop(self) -> None:
        """Stop listening."""
        self._loop.remove_reader(self._answers.fileno())

    async def infer(
        self, upload: Upload, deadline: FlightDeadline, caller: Caller = ANY, parts: int = 0, *, is_alone: bool = False
    ) -> tuple[AnswerRecord, float]:
        """Run one upload on the model.

        Unless it is alone, the caller keeps the deadline: it cancels this, which abandons the slot, so that no worker
        runs the image. The workers see the deadline, too, and keep it even if the caller is late.

        Args:
            upload: The image.
            deadline: After which no worker must run it; it may be extended.
            caller: Who sent it; clients share slots and decoding.
            parts: What the answer must have besides the most probable classes, see `records.ALL_CLASSES`.
            is_alone: Whether nothing else waits for the answer, so that the deadline is kept here.

        Returns:
            The workers' answer, whose status is OK, and the seconds that decoding took.

        Raises:
            DeadlineExceeded: The deadline passed first.
            NotReady: No worker has started yet.
            Overloaded: Every slot is taken, or all that this client or images of this urgency may have.
            InferenceFailed: The model raised.
            ViTError: The upload can't be decoded.
        """
        # Before a slot is taken, which an exception would leak.
        is_quick = self._decoder.is_quick(upload)
        cost = None if is_quick else self._decoder.estimate_cost(upload)
        slot, generation = self._take_slot(deadline.at, caller, parts)
        job = self._jobs[slot] = _Job(upload, self._loop.create_future(), caller)
        self._rates[caller.urgency].begin()
        deadline.on_extend = functools.partial(self._extend, slot, job)
        if cost is None:
            self._decode_into(slot, generation, job, self._send_soon)
        else:
            self._turns.submit(functools.partial(self._decode_into, slot, generation, job), cost, *caller)
        timer = expire_at(job.waiter, deadline.at) if is_alone else None
        try:
            return await job.waiter, job.decode_s or 0.0
        except (asyncio.CancelledError, DeadlineExceeded):
            job.upload = None  # it may be long until a decoding thread gets to it
            # If the answer has just arrived, the slot may be free by now, or hold another image.
            if self._jobs.get(slot) is job:
                self._slots.abandon(slot)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def infer_again(self, slot: int, generation: int, caller: Caller) -> asyncio.Future[AnswerRecord]:
        """Run what a slot holds already, which was taken for `caller`; the slot is freed with the answer.

        Returns:
            The workers' answer, or the error that `infer` would raise.
        """
        job = self._jobs[slot] = _Job(b"", self._loop.create_future(), caller)
        self._rates[caller.urgency].begin()
        self._shares.add(caller)
        self._slots.queue(slot, time.monotonic())
        self._requests[caller.urgency].write([RequestRecord(slot, generation).pack()])
        return job.waiter

    def _extend(self, slot: int, job: _Job, deadline: float) -> None:
        if self._jobs.get(slot) is job:
            self._slots.extend(slot, deadline)

    async def infer_frames(
        self,
        upload: bytes,
        plan: FramePlan,
        wanted: Sequence[int],
        deadline: FlightDeadline,
        caller: Caller = ANY,
        *,
        parts: int = 0,
    ) -> list[tuple[AnswerRecord, float]]:
        """Run several frames of an upload on the model; each has a slot, and one thread decodes them all.

        Args:
            upload: The file.
            plan: The frames that were chosen of it.
            wanted: Positions in the plan of those to run.
            deadline: After which no worker must run them; it may be extended.
            caller: Who sent it.
            parts: What the answers must have besides the most probable classes.

        Returns:
            For each of these what `infer` returns.

        Raises:
            BadRequest: There are fewer slots than frames.
            ViTError: As `infer`, for the first frame that fails.
        """
        max_frames = self._slots.max_of(caller.urgency)
        if len(wanted) > max_frames:
            raise BadRequest(f"The queue holds at most {max_frames} images: ask for fewer frames.")
        taken = self._take_slots(len(wanted), deadline.at, caller, parts)
        jobs = [_Job(upload, self._loop.create_future(), caller) for _ in taken]
        frames = [_TakenFrame(*slot, job) for slot, job in zip(taken, jobs, strict=True)]
        self._jobs.update((frame.slot, frame.job) for frame in frames)
        self._rates[caller.urgency].begin(len(frames))
        deadline.on_extend = functools.partial(self._extend_frames, frames)
        decoding = functools.partial(self._decode_frames_into, frames, plan, wanted)
        self._turns.submit(decoding, plan.cost, *caller)
        try:
            answers = await asyncio.gather(*(job.waiter for job in jobs))
        except BaseException:
            for frame in frames:
                frame.job.upload = None
                if self._jobs.get(frame.slot) is frame.job:
                    self._slots.abandon(frame.slot)
            raise
        return [(answer, job.decode_s or 0.0) for answer, job in zip(answers, jobs, strict=True)]

    def _extend_frames(self, frames: Sequence[_TakenFrame], deadline: float) -> None:
        for frame in frames:
            self._extend(frame.slot, frame.job, deadline)

    def _take_slots(self, count: int, deadline: float, caller: Caller, parts: int) -> list[tuple[int, int]]:
        """Return as many slots and their generations, or raise and take none."""
        taken: list[tuple[int, int]] = []
        try:
            taken.extend(self._take_slot(deadline, caller, parts) for _ in range(count))
        except ViTError:
            for slot, _ in taken:
                self._slots.release(slot)
                self._shares.remove(caller)
            raise
        return taken

    def _take_slot(self, deadline: float, caller: Caller, parts: int) -> tuple[int, int]:
        """Return a slot and its generation."""
        if not self._worker_board.takes_images():
            is_gone = self._worker_board.is_gone()
            raise WorkersGone(self._gone) if is_gone else NotReady("The model is still loading. Retry shortly.")
        urgency = caller.urgency
        has_share = self._shares.may_take(caller, self._slots.free_count)
        taken = self._slots.take(deadline, urgency, parts) if has_share else None
        if taken is None:
            raise Overloaded(_FULL[urgency], self._rates[urgency].seconds_left())
        self._shares.add(caller)
        return taken

    def _decode_into(self, slot: int, generation: int, job: _Job, send: _Send | None = None) -> None:
        """Decode an upload and queue it; usually in a decoding thread, which owns the slot's pixels meanwhile.

        The request record is written here, which saves a wake-up of the event loop for each image, unless `send` is to
        do it.
        """
        try:
            self._check_wanted(slot)
            upload = job.take_upload()
            began_at = time.monotonic()
            self._pixels[slot] = self._decoder.decode_request(upload)
            self._check_wanted(slot)
            self._queue(slot, generation, job, began_at, send or self._send)
        except ViTError as error:
            self._fail_from_thread(slot, error)
        except Exception:
            logger.exception("decoding failed unexpectedly")
            self._fail_from_thread(slot, InternalError("The server failed to decode this image. Its log says why."))

    def _queue(self, slot: int, generation: int, job: _Job, began_at: float, send: _Send) -> None:
        """Hand over a slot whose pixels are written, to the workers."""
        decoded_at = time.monotonic()
        job.decode_s = decoded_at - began_at
        self._slots.queue(slot, decoded_at)
        send(job.caller.urgency, RequestRecord(slot, generation).pack())

    def _send(self, urgency: Urgency, record: bytes) -> None:
        self._requests[urgency].write([record])

    def _send_soon(self, urgency: Urgency, record: bytes) -> None:
        """Send a record with those of the other images that this turn of the event loop decodes.

        A write wakes a worker, which costs both sides more than anything else about a small image.
        """
        if not self._unsent:
            self._loop.call_soon(self._send_unsent)
        self._unsent.append((urgency, record))

    def _send_unsent(self) -> None:
        unsent, self._unsent = self._unsent, []
        for urgency in Urgency:
            records = [record for its_urgency, record in unsent if its_urgency is urgency]
            if records:
                self._requests[urgency].write(records)

    def _decode_frames_into(self, frames: Sequence[_TakenFrame], plan: FramePlan, wanted: Sequence[int]) -> None:
        """Decode frames and queue each as soon as it is decoded; in a decoding thread."""
        left = deque(frames)
        try:
            upload = frames[0].job.take_upload()
            assert isinstance(upload, bytes)
            for frame in frames:
                frame.job.upload = None
            began_at = time.monotonic()
            with contextlib.closing(self._decoder.decode_frames(upload, plan, wanted)) as decoded:
                for _, pixels in decoded:
                    slot, generation, job = left[0]
                    self._check_wanted(slot)
                    self._pixels[slot] = pixels
                    self._queue(slot, generation, job, began_at, self._send)
                    left.popleft()
                    began_at = time.monotonic()
        except ViTError as error:
            for frame in left:
                self._fail_from_thread(frame.slot, error)
        except Exception:
            logger.exception("decoding failed unexpectedly")
            failure = InternalError("The server failed to decode this image. Its log says why.")
            for frame in left:
                self._fail_from_thread(frame.slot, failure)

    def _check_wanted(self, slot: int) -> None:
        if not self._slots.is_wanted(slot, time.monotonic()):
            raise DeadlineExceeded(_ABANDONED)

    def _fail_from_thread(self, slot: int, error: ViTError) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._complete, slot, error)

    def _read_answers(self) -> None:
        for answer in unpack_answers(self._answers.read(_ANSWERS_PER_READ)):
            try:
                self._accept(answer)
            except Exception:  # one bad answer must not affect the others
                logger.exception("slot %d is in an unexpected state", answer.slot)

    def _accept(self, answer: AnswerRecord) -> None:
        if not self._slots.is_current(answer.slot, answer.generation):
            return
        is_lost = answer.status == Status.LOST
        if is_lost and not self._slots.is_held(answer.slot):
            return  # it has already been queued again
        if is_lost and self._should_retry(answer.slot):
            self._retry(answer)
        else:
            if answer.long_bytes and answer.slot in self._jobs:  # copied before the slot is released
                packed = self._slots.read_long(answer.slot, answer.long_bytes)
                answer = answer._replace(prediction=Prediction.unpack(packed))
            self._complete(answer.slot, _error_of(answer, self._gone) or answer)

    def _should_retry(self, slot: int) -> bool:
        if slot not in self._jobs or self._deaths.get(slot, 0) >= MAX_DEATHS:
            return False
        return self._slots.is_wanted(slot, time.monotonic())

    def _retry(self, answer: AnswerRecord) -> None:
        """Queue an image again whose worker died; isolated after the second death, since it may be the cause."""
        slot = answer.slot
        deaths = self._deaths[slot] = self._deaths.get(slot, 0) + 1
        self._slots.requeue(slot, isolated=deaths == MAX_DEATHS)
        self._requests[self._jobs[slot].caller.urgency].write([RequestRecord(slot, answer.generation).pack()])

    def _complete(self, slot: int, outcome: AnswerRecord | ViTError) -> None:
        """Free the slot and pass the outcome to its waiter, if there still is one."""
        self._slots.release(slot)
        self._deaths.pop(slot, None)
        job = self._jobs.pop(slot, None)
        if job is None:  # taken by this process's predecessor, which died
            return
        self._shares.remove(job.caller)
        self._rates[job.caller.urgency].finish()
        if job.decode_s is not None:
            self._decode_times.observe(job.decode_s)
        if job.waiter.done():
            return
        if isinstance(outcome, ViTError):
            job.waiter.set_exception(outcome)
        else:
            job.waiter.set_result(outcome)


def _error_of(answer: AnswerRecord, gone: str) -> ViTError | None:
    match answer.status:
        case Status.OK:
            return None
        case Status.SKIPPED:
            return DeadlineExceeded(_ABANDONED)
        case Status.FAILED:
            return InferenceFailed("The model failed on this image. The server's log says why.")
        case Status.OUT_OF_MEMORY:
            return OutOfDeviceMemory("The device does not have enough free memory for this image. Try again later.")
        case Status.LOST:
            return InferenceFailed("The inference worker crashed repeatedly while processing this image.")
        case Status.UNAVAILABLE:
            return WorkersGone(gone)
