"""The worker half: LitServe's loop, fed from the slot table.

Reads request records, collects slots into batches, runs the LitAPI's hooks on them and writes answers. Knows nothing of
HTTP.

Theory of operation
-------------------
`outcomes.start` launches a batch on the device and `outcomes.finish` waits for it. Up to two batches are on the device:
the one that it computes, and one that is staged behind it. They are answered in their order, each as soon as it is
done, whether or not another one follows. Images that wait when it is done are dispatched first: the device
computes them while the host writes the answers. On the CPU a launched batch is done at once, so there is never a second
one.

While the device is busy, images stay unclaimed until enough of them wait for a full batch or the device is free (see
`BatchingPolicy.should_stage`): another worker may be free before this one, and an image whose client leaves meanwhile
is not run. An isolated image has the device to itself, so that a crash is attributed to it alone.

Images of normal urgency come before those of low urgency; `UrgencyMix` decides how many of these a batch takes. No
batch is dispatched with an image whose deadline has passed, even if the image was claimed before.

A failure belongs to the batch whose hooks raised it and is answered in that batch's turn. So is a lack of memory: by
then the batches before it have left the device, and it is run again in halves.
"""

from __future__ import annotations

import functools
import logging
import math
import operator
import os
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from litserve.loops import LitLoop

from vit_api import metrics
from vit_api.ipc.batch_stats import BatchStats
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import NO_PREDICTION, AnswerRecord, Prediction, RecordPipe, Status
from vit_api.ipc.slots import Claim, SlotTable, WorkerSlots
from vit_api.ipc.worker_board import WorkerBoard, WorkerState, WorkerStatus
from vit_api.urgency import LABELS
from vit_api.worker import outcomes
from vit_api.worker.batching import BatchingPolicy
from vit_api.worker.image_queue import ImageQueue
from vit_api.worker.outcomes import BrokenDevice, RunOutcome

if TYPE_CHECKING:
    from vit_api.lit_api import ViTAPI

logger = logging.getLogger(__name__)

_HEARTBEAT_S = 1.0
"""Interval of an idle worker's heartbeats."""

_LEAVE_S = 0.002
"""For how long the cores are left to decoding at a time; a decoded image would wake the worker, which takes a core."""

_MAX_STARTED = 2
"""Batches on the device: one that it computes, and one staged behind it."""


class _Batch(NamedTuple):
    """A batch on the device.

    Attributes:
        claims: Its images.
        started_at: When its gathering began, in seconds of the monotonic clock.
        started: Its run.
    """

    claims: list[Claim]
    started_at: float
    started: outcomes.Started


class SlotLoop(LitLoop):  # type: ignore[misc]
    """Serve batches from a slot table.

    Args:
        table: Holds the images.
        worker_board: Where the worker publishes its status.
        requests: Carry the records of queued slots to all workers, by urgency.
        answers: One pipe for each HTTP process, by its number.
        policy: Decides when a batch is dispatched.
        metrics_board: Where to count.
        batch_stats: Where to count the times of batches.
        names: The workers' names in the metrics, by number.
    """

    def __init__(
        self,
        table: SlotTable,
        worker_board: WorkerBoard,
        requests: Sequence[RecordPipe],
        answers: list[RecordPipe],
        policy: BatchingPolicy,
        *,
        metrics_board: MetricsBoard,
        batch_stats: BatchStats,
        names: Sequence[str] = ("worker-0",),
    ) -> None:
        super().__init__()
        self._names = names
        self._table = table
        self._worker_board = worker_board
        self._requests = requests
        self._answers = answers
        self._policy = policy
        self._metrics_board = metrics_board
        self._batch_stats = batch_stats
        self._was_isolated = False
        self._batches: deque[_Batch] = deque()
        self._done_at = 0.0

    def __call__(self, lit_api: ViTAPI, device: str, worker_id: int, *litserve: Any) -> None:
        """Publish that this worker is ready, then serve until the process ends. LitServe calls this after `setup`."""
        self.take_number(worker_id)
        model = lit_api.model
        if model is None:
            raise RuntimeError("LitServe did not call setup() first.")
        status = WorkerStatus(
            WorkerState.READY,
            device,
            model.device_name,
            model.dtype_name,
            device_uuid=model.device_uuid,
            engine=model.engine.name,
            startup_s=lit_api.startup_s,
        )
        self._worker_board.publish(worker_id, status)
        super().__call__(lit_api, device, worker_id, *litserve)

    def take_number(self, worker_id: int) -> None:
        """Become the worker with this number."""
        self._worker = worker_id
        self._slots = WorkerSlots(self._table, worker_id)
        metrics_writer = self._metrics_board.metrics_writer(self._names[worker_id])
        self._queue_waits = [metrics_writer.histogram(metrics.QUEUE_WAIT, label) for label in LABELS]
        expired, abandoned = (
            [metrics_writer.counter(metrics.SKIPPED, reason, label) for label in LABELS]
            for reason in ("expired", "abandoned")
        )
        self._queue = ImageQueue(
            self._table,
            self._slots,
            self._requests,
            self._policy.max_batch_size,
            answer=self._answer,
            expired=expired,
            abandoned=abandoned,
        )
        self._batch_sizes = metrics_writer.histogram(metrics.BATCH_SIZE)
        self._batch_times = metrics_writer.histogram(metrics.BATCH_DURATION)
        self._model_times = metrics_writer.histogram(metrics.MODEL_DURATION)

    def run(self, lit_api: ViTAPI, *_: Any) -> None:
        """Start one batch, however long it takes to come, or answer one that the device has finished.

        If the device no longer computes, end the process: the next worker has to run these batches.
        """
        try:
            self._run_once(lit_api)
        except BrokenDevice:
            logger.critical("the device no longer works; this worker ends, so that another one is started")
            _end_process()

    def _run_once(self, lit_api: ViTAPI) -> None:
        if not self._batches:
            self._start(lit_api, self._collect())
        elif self._should_stage_next(lit_api):
            self._start(lit_api, self._queue.claim())
        elif self._is_done(lit_api):
            done_at = time.monotonic()
            self._start(lit_api, self._claim_due())
            self._answer_oldest(lit_api, done_at)
        else:
            self._answer_oldest(lit_api)
        while self._batches and (len(self._batches) == _MAX_STARTED or self._is_done(lit_api)):
            self._answer_oldest(lit_api)

    def _should_stage_next(self, lit_api: ViTAPI) -> bool:
        """Wait until another batch should be staged (return True) or the one on the device is done (False)."""
        if self._queue.has_isolated or self._was_isolated:
            return False
        while not self._is_done(lit_api):
            if self._policy.should_stage(self._queue.count_candidates()[0]):
                return True
            time.sleep(outcomes.POLL_S)
        return False

    def _is_done(self, lit_api: ViTAPI) -> bool:
        return outcomes.is_done(lit_api, self._batches[0].started)

    def _start(self, lit_api: ViTAPI, claims: list[Claim]) -> None:
        """Launch a batch behind those that the device has; nothing if other workers took the images."""
        if not claims:
            return
        if not self._batches:  # a busy device shows progress when it finishes a batch
            self._worker_board.heartbeat(self._worker, time.monotonic())
        started_at = time.monotonic()
        pixels = [self._table.pixels[claim.slot] for claim in claims]
        parts = functools.reduce(operator.or_, (claim.parts for claim in claims))
        self._batches.append(_Batch(claims, started_at, outcomes.start(lit_api, pixels, parts)))

    def _answer_oldest(self, lit_api: ViTAPI, done_at: float | None = None) -> None:
        """Wait for the batch that was started first, and answer it.

        Args:
            lit_api: Runs it.
            done_at: When the device was done with it, in seconds of the monotonic clock; None: it may not be.
        """
        batch = self._batches.popleft()
        claims, ended_at, model_s = batch.claims, 0.0, 0.0

        def observe(started: outcomes.Started) -> None:
            nonlocal ended_at, model_s  # halves of a batch that did not fit are run later
            ended_at = done_at if done_at is not None and started is batch.started else time.monotonic()
            seconds = ended_at - max(started.staged_at, self._done_at)
            model_s += seconds
            self._model_times.observe(seconds)

        results = outcomes.finish(lit_api, batch.started, observe)
        long_bytes = [self._write_long(*one) if one[0].parts else 0 for one in zip(claims, results, strict=True)]
        for claim in claims:
            self._slots.finish(claim.slot)
        began_at = max(batch.started_at, self._done_at)  # until then, the device ran the batch before
        self._done_at = ended_at or time.monotonic()
        self._record(claims, began_at)
        self._answer(
            _answer_of(claim, outcome, size, (len(claims), began_at - claim.queued_at, self._done_at - began_at))
            for claim, outcome, size in zip(claims, results, long_bytes, strict=True)
        )
        if ended_at:
            if self._table.has_low():
                self._queue.mix.observe(len(claims), self._done_at - began_at)
            times_s = max(0.0, batch.started.staged_at - began_at), model_s, time.monotonic() - ended_at
            self._batch_stats.add(self._worker, len(claims), times_s, time.time())

    def _write_long(self, claim: Claim, outcome: RunOutcome) -> int:
        """Write an answer into its slot if it does not fit in a record; return its size there, or 0."""
        prediction = outcome.with_parts(claim.parts) if isinstance(outcome, Prediction) else NO_PREDICTION
        if not prediction.is_long:
            return 0
        packed = prediction.pack()
        self._slots.write_long(claim.slot, packed)
        return len(packed)

    def _record(self, claims: Sequence[Claim], began_at: float) -> None:
        """Count a finished batch."""
        self._worker_board.heartbeat(self._worker, self._done_at)
        self._worker_board.count_batch(self._worker, len(claims))
        self._batch_sizes.observe(len(claims))
        self._batch_times.observe(self._done_at - began_at)
        for claim in claims:
            self._queue_waits[claim.urgency].observe(began_at - claim.queued_at)

    def _collect(self) -> list[Claim]:
        """Wait for images and return the next batch: 1 to `max_batch_size` claims, oldest first."""
        batch: list[Claim] = []
        if self._queue.has_isolated and not self._was_isolated:  # in turns with the others, so that neither starves
            batch = self._queue.claim_isolated()
        self._was_isolated = bool(batch)
        while not self._was_isolated:
            self._leave_cores()
            batch += self._queue.claim(batch)
            if not batch and (isolated := self._queue.claim_isolated()):
                self._was_isolated = True
                return isolated
            self._worker_board.heartbeat(self._worker, time.monotonic())
            wait_s = self._policy.remaining_wait_s(
                now=time.monotonic(),
                size=len(batch),
                oldest_queued_at=min((claim.queued_at for claim in batch), default=math.inf),
                incoming=self._queue.count_incoming(batch) if batch else 0,
            )
            if wait_s == 0:
                break
            self._queue.wait(batch, min(wait_s, _HEARTBEAT_S))
            batch = self._queue.without_unwanted(batch)
        return batch

    def _leave_cores(self) -> None:
        """Wait while decoding should have the cores; see `BatchingPolicy.should_leave_cores`."""
        if self._policy.shared_cores is None:  # nothing to count
            return
        table = self._table
        while self._policy.should_leave_cores(
            waiting=table.count_waiting(),
            decoding=table.count_decoding(),
            waited_s=time.monotonic() - table.oldest_waiting_at(),
        ):
            time.sleep(_LEAVE_S)

    def _claim_due(self) -> list[Claim]:
        """Claim the images that make a batch which the policy dispatches now, if they do."""
        if self._queue.has_isolated or self._was_isolated:
            return []
        waiting, incoming = self._queue.count_candidates()
        wait_s = self._policy.remaining_wait_s(
            now=time.monotonic(),
            size=min(waiting, self._policy.max_batch_size),
            oldest_queued_at=self._table.oldest_waiting_at(),
            incoming=incoming,
        )
        return self._queue.claim() if wait_s == 0 else []

    def _answer(self, answers: Iterable[AnswerRecord]) -> None:
        """Send answers to the HTTP processes that own their slots: one write each, so that each wakes once."""
        by_owner: defaultdict[int, list[bytes]] = defaultdict(list)
        for answer in answers:
            by_owner[self._table.owner_of(answer.slot)].append(answer.pack())
        for owner, records in by_owner.items():
            self._answers[owner].write(records)


def _end_process() -> None:
    """End this process with status 1, without finalizers: on a broken device, CUDA's may hang or abort the process."""
    logging.shutdown()
    os._exit(1)


def _answer_of(claim: Claim, outcome: RunOutcome, long_bytes: int, batch: tuple[int, float, float]) -> AnswerRecord:
    """Return the record of an outcome; `batch` is its size, and the seconds in the queue and on the device."""
    if isinstance(outcome, Prediction):
        return AnswerRecord(claim.slot, claim.generation, Status.OK, outcome, *batch, long_bytes)
    return AnswerRecord(claim.slot, claim.generation, outcome.status, NO_PREDICTION, *batch)
