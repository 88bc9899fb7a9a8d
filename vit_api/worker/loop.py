"""The worker half: LitServe's loop, fed from the slot table.

Reads request records, gathers slots into batches, runs the LitAPI's hooks on them and writes answers. Knows nothing of
HTTP.

Theory of operation
-------------------
`batch` and `predict` start a batch on the device, `unbatch` waits for it. Up to two batches are on the device, in the
order in which they are answered: one that it computes, and one that is staged behind it. A batch that was started is
answered as soon as it is done, whether or not another one comes; on the CPU `predict` returns when it is, and so there
is never a second one.

While the device is busy, images stay unclaimed until enough of them wait for a full batch or the device is free (see
`BatchingPolicy.should_stage`): another worker may be free before this one, and an image whose client leaves meanwhile
is not run. An isolated image has the device to itself, so that a crash is attributed to it alone.

A failure belongs to the batch whose hooks raised it, and is answered in that batch's turn. So does a lack of memory: by
then, what was before it on the device is gone, and the batch is tried again in halves.
"""

from __future__ import annotations

import logging
import math
import select
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from litserve.loops import LitLoop

from vit_api import metrics
from vit_api.errors import OutOfDeviceMemory
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import (
    NO_PREDICTION,
    AnswerRecord,
    Prediction,
    RecordPipe,
    RequestRecord,
    Status,
    unpack_requests,
)
from vit_api.ipc.slots import Claim, SlotTable
from vit_api.ipc.worker_board import WorkerBoard, WorkerState, WorkerStatus
from vit_api.worker.batching import BatchingPolicy

if TYPE_CHECKING:
    from vit_api.lit_api import ViTAPI

logger = logging.getLogger(__name__)

_BEAT_S = 1.0
"""How often an idle worker shows that it is alive."""

_MOST_STARTED = 2
"""Batches on the device: one that it computes, and one behind it."""
_POLL_S = 20e-6
"""How often to look whether the device is done, while a batch may go behind it: select(2) can't wait for a device."""

_Outcome = tuple[Status, Prediction]


class _Started(NamedTuple):
    """A batch on the device.

    Attributes:
        batch: Its images.
        started_at: When its gathering began, in seconds of the monotonic clock.
        staged_at: When `batch` was through with it.
        output: What `unbatch` takes, or why there is nothing.
    """

    batch: list[Claim]
    started_at: float
    staged_at: float
    output: Any


class SlotLoop(LitLoop):  # type: ignore[misc]
    """Serve batches from a slot table.

    Args:
        table: Where the pixels are.
        board: Where the worker says that it is ready.
        requests: Brings the records of queued slots; shared by all workers.
        answers: One pipe for each HTTP process, by its number.
        policy: When a batch goes.
        counts: Where to count.
    """

    def __init__(
        self,
        table: SlotTable,
        board: WorkerBoard,
        requests: RecordPipe,
        answers: list[RecordPipe],
        policy: BatchingPolicy,
        *,
        counts: MetricsBoard,
    ) -> None:
        super().__init__()
        self._table = table
        self._board = board
        self._requests = requests
        self._answers = answers
        self._policy = policy
        self._counts = counts
        self._isolated: deque[RequestRecord] = deque()
        self._was_isolated = False
        self._started: deque[_Started] = deque()
        self._done_at = 0.0

    def __call__(self, lit_api: ViTAPI, device: str, worker_id: int, *litserve: Any) -> None:
        """Say that this worker is ready, then serve until the process ends. LitServe calls this after `setup`."""
        self.take_number(worker_id)
        model = lit_api.model
        if model is None:
            raise RuntimeError("LitServe did not call setup() first")
        dtype = str(model.dtype).removeprefix("torch.")
        notice = WorkerStatus(
            WorkerState.READY,
            device,
            model.device_name,
            dtype,
            device_uuid=model.device_uuid,
            engine=model.engine.name,
            startup_s=lit_api.startup_s,
        )
        self._board.post(worker_id, notice)
        super().__call__(lit_api, device, worker_id, *litserve)

    def take_number(self, worker_id: int) -> None:
        """Become the worker of this number."""
        self._worker = worker_id
        metrics_writer = self._counts.metrics_writer(f"worker-{worker_id}")
        self._queue_waits = metrics_writer.histogram(metrics.QUEUE_WAIT)
        self._batch_sizes = metrics_writer.histogram(metrics.BATCH_SIZE)
        self._batch_times = metrics_writer.histogram(metrics.BATCH_DURATION)
        self._model_times = metrics_writer.histogram(metrics.MODEL_DURATION)

    def run(self, lit_api: ViTAPI, *_: Any) -> None:
        """Start one batch, waiting for it as long as it takes, or answer one that the device is done with."""
        if not self._started:
            self._start(lit_api, self._collect())
        elif self._has_company(lit_api):
            self._start(lit_api, self._claim_waiting(self._policy.max_batch_size))
        else:
            self._answer_oldest(lit_api)
        while self._started and (len(self._started) == _MOST_STARTED or self._is_done(lit_api, self._started[0])):
            self._answer_oldest(lit_api)

    def _has_company(self, lit_api: ViTAPI) -> bool:
        """Wait until a batch should go behind the one on the device, or that one is done; tell which."""
        if self._isolated or self._was_isolated:
            return False
        while not self._is_done(lit_api, self._started[0]):
            if self._policy.should_stage(self._table.count_waiting()):
                return True
            time.sleep(_POLL_S)
        return False

    @staticmethod
    def _is_done(lit_api: ViTAPI, started: _Started) -> bool:
        return isinstance(started.output, Status) or lit_api.is_done(started.output)

    def _start(self, lit_api: ViTAPI, batch: list[Claim]) -> None:
        """Have the device compute a batch, after those that it has; none if others took the images."""
        if not batch:
            return
        if not self._started:  # else the device makes progress when it is done with what it has
            self._board.beat(self._worker, time.monotonic())
        self._started.append(self._launch(lit_api, batch))

    def _answer_oldest(self, lit_api: ViTAPI) -> None:
        """Wait for the batch that was started the longest ago, and answer it."""
        started = self._started.popleft()
        batch = started.batch
        outcomes = self._outcomes(lit_api, started)
        for claim in batch:
            self._table.finish(claim.slot)
        began_at = max(started.started_at, self._done_at)  # before, the device had another one
        self._done_at = time.monotonic()
        self._board.beat(self._worker, self._done_at)
        self._board.count_batch(self._worker, len(batch))
        inference_s = self._done_at - began_at
        self._batch_sizes.observe(len(batch))
        self._batch_times.observe(inference_s)
        for claim in batch:
            self._queue_waits.observe(began_at - claim.queued_at)
        self._answer(
            AnswerRecord(claim.slot, claim.generation, status, top, len(batch), began_at - claim.queued_at, inference_s)
            for claim, (status, top) in zip(batch, outcomes, strict=True)
        )

    def _collect(self) -> list[Claim]:
        """Wait for images and return the next batch: 1 to `max_batch_size` claims, oldest first."""
        batch: list[Claim] = []
        if self._isolated and not self._was_isolated:  # in turns with the others: neither is to wait for ever
            batch = self._claim_isolated()
        self._was_isolated = bool(batch)
        while not self._was_isolated:
            batch += self._claim_waiting(self._policy.max_batch_size - len(batch))
            if not batch and (isolated := self._claim_isolated()):
                self._was_isolated = True
                return isolated
            self._board.beat(self._worker, time.monotonic())
            wait_s = self._policy.remaining_wait_s(
                now=time.monotonic(),
                size=len(batch),
                oldest_queued_at=min((claim.queued_at for claim in batch), default=math.inf),
                coming=self._table.count_coming() if batch else 0,
            )
            if wait_s == 0:
                break
            select.select([self._requests], [], [], min(wait_s, _BEAT_S))
        return batch

    def _claim_waiting(self, most: int) -> list[Claim]:
        """Claim up to `most` images that wait now; answer those that nobody wants any more."""
        requests: list[RequestRecord] = []
        for request in unpack_requests(self._requests.read(most)):
            (self._isolated if self._table.is_isolated(request.slot) else requests).append(request)
        return self._claim(requests)

    def _claim_isolated(self) -> list[Claim]:
        """Claim one of the images that are to be batches of their own, if there is one.

        They are not claimed before: what a worker holds when it dies is suspect.
        """
        claims: list[Claim] = []
        while self._isolated and not claims:
            claims = self._claim([self._isolated.popleft()])
        return claims

    def _claim(self, requests: Iterable[RequestRecord]) -> list[Claim]:
        now = time.monotonic()
        claims = (self._table.claim(slot, generation, self._worker, now) for slot, generation in requests)
        current = [claim for claim in claims if claim is not None]
        self._answer(AnswerRecord(c.slot, c.generation, Status.SKIPPED) for c in current if not c.is_wanted)
        return [claim for claim in current if claim.is_wanted]

    def _launch(self, lit_api: ViTAPI, batch: list[Claim]) -> _Started:
        """Have the device compute a batch; a failure is noted instead of the output."""
        started_at = time.monotonic()
        pixels = [self._table.pixels[claim.slot] for claim in batch]
        staged = _attempt(lit_api, lambda: lit_api.batch(pixels), len(batch))
        staged_at = time.monotonic()
        is_staged = not isinstance(staged, Status)
        output = _attempt(lit_api, lambda: lit_api.predict(staged), len(batch)) if is_staged else staged
        return _Started(batch, started_at, staged_at, output)

    def _outcomes(self, lit_api: ViTAPI, started: _Started) -> list[_Outcome]:
        """Wait for a batch; a failure is the status of every image in it.

        Where the device's memory does not suffice, the batch is tried again in halves, down to single images.
        """
        batch, _, staged_at, output = started
        size = len(batch)
        if not isinstance(output, Status):
            launched = output
            output = _attempt(lit_api, lambda: _complete(lit_api.unbatch(launched), size), size)
        if not isinstance(output, Status):
            self._model_times.observe(time.monotonic() - max(staged_at, self._done_at))
            return [_outcome_of(prediction) for prediction in output]
        if output == Status.OUT_OF_MEMORY:
            lit_api.free_memory()
        if output != Status.OUT_OF_MEMORY or size == 1:
            return [(output, NO_PREDICTION)] * size
        halves = batch[: size // 2], batch[size // 2 :]
        return [outcome for half in halves for outcome in self._outcomes(lit_api, self._launch(lit_api, half))]

    def _answer(self, answers: Any) -> None:
        """Send answers to the HTTP processes that own their slots: one write each, so that each wakes once."""
        by_owner: defaultdict[int, list[bytes]] = defaultdict(list)
        for answer in answers:
            by_owner[self._table.owner_of(answer.slot)].append(answer.pack())
        for owner, records in by_owner.items():
            self._answers[owner].write(records)


def _attempt(lit_api: ViTAPI, step: Callable[[], Any], size: int) -> Any:
    """Return what a step on a batch returns, or the status of its failure, which is logged.

    When this returns, the exception is gone, and with it the frames that hold the batch's tensors.

    Raises:
        SystemExit: The device does nothing any more, so the next worker has to run this batch.
    """
    try:
        return step()
    except OutOfDeviceMemory:
        logger.warning("the device's memory does not suffice for a batch of %d", size)
        return Status.OUT_OF_MEMORY
    except Exception:
        logger.exception("a batch of %d failed", size)
        if not lit_api.has_working_device():
            logger.critical("the device does not work any more; this worker ends, so that another one is started")
            raise SystemExit(1) from None
        return Status.FAILED


def _outcome_of(prediction: Prediction) -> _Outcome:
    """Return what an image is answered: a failure where its numbers have overflowed on the way."""
    if prediction.is_finite:
        return Status.OK, prediction
    logger.error("the model gave an image infinite numbers, or none: its weights or its dtype don't suffice")
    return Status.FAILED, NO_PREDICTION


def _complete(predictions: list[Prediction], size: int) -> list[Prediction]:
    """Return the predictions if there is one for each image."""
    if len(predictions) != size:
        raise RuntimeError(f"the model gave {len(predictions)} predictions for {size} images")
    return predictions
