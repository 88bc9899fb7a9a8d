"""The worker half: LitServe's loop, fed from the slot table.

Reads request records, gathers slots into batches, runs the LitAPI's hooks on them and writes answers. Knows nothing of
HTTP.
"""

from __future__ import annotations

import logging
import math
import select
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from litserve.loops import LitLoop

from vit_api import metrics
from vit_api.batching import BatchingPolicy
from vit_api.errors import OutOfDeviceMemory
from vit_api.metrics_board import MetricsBoard
from vit_api.records import Answer, Prediction, RecordPipe, Request, Status, unpack_requests
from vit_api.slots import Claim, SlotTable
from vit_api.workers import WorkerBoard, WorkerNotice, WorkerState

if TYPE_CHECKING:
    from vit_api.lit_api import ViTAPI

logger = logging.getLogger(__name__)

_BEAT_S = 1.0
"""How often an idle worker shows that it is alive."""

_NOTHING = Prediction((), ())


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
        self._alone: deque[Request] = deque()
        self._was_alone = False

    def __call__(self, lit_api: ViTAPI, device: str, worker_id: int, *litserve: Any) -> None:
        """Say that this worker is ready, then serve until the process ends. LitServe calls this after `setup`."""
        self.take_number(worker_id)
        model = lit_api.model
        if model is None:
            raise RuntimeError("LitServe did not call setup() first")
        dtype = str(model.dtype).removeprefix("torch.")
        self._board.post(worker_id, WorkerNotice(WorkerState.READY, device, model.device_name, dtype))
        super().__call__(lit_api, device, worker_id, *litserve)

    def take_number(self, worker_id: int) -> None:
        """Become the worker of this number."""
        self._worker = worker_id
        meter = self._counts.meter(f"worker-{worker_id}")
        self._queue_waits = meter.distribution(metrics.QUEUE_WAIT)
        self._batch_sizes = meter.distribution(metrics.BATCH_SIZE)
        self._batch_times = meter.distribution(metrics.BATCH_DURATION)
        self._model_times = meter.distribution(metrics.MODEL_DURATION)

    def run(self, lit_api: ViTAPI, *_: Any) -> None:
        """Serve one batch, waiting for it as long as it takes."""
        batch = self._collect()
        started = time.monotonic()
        self._board.beat(self._worker, started)
        outcomes = self._infer(lit_api, batch)
        self._board.count_batch(self._worker, len(batch))
        for claim in batch:
            self._table.finish(claim.slot)
        inference_s = time.monotonic() - started
        self._batch_sizes.observe(len(batch))
        self._batch_times.observe(inference_s)
        for claim in batch:
            self._queue_waits.observe(started - claim.queued_at)
        self._answer(
            Answer(claim.slot, claim.generation, status, prediction, len(batch), started - claim.queued_at, inference_s)
            for claim, (status, prediction) in zip(batch, outcomes, strict=True)
        )

    def _collect(self) -> list[Claim]:
        """Wait for images and return the next batch: 1 to `max_batch_size` claims, oldest first."""
        batch: list[Claim] = []
        if self._alone and not self._was_alone:  # in turns with the others: neither is to wait for ever
            batch = self._claim_alone()
        self._was_alone = bool(batch)
        while not self._was_alone:
            batch += self._claim_waiting(self._policy.max_batch_size - len(batch))
            if not batch and (alone := self._claim_alone()):
                self._was_alone = True
                return alone
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
        requests: list[Request] = []
        for request in unpack_requests(self._requests.read(most)):
            (self._alone if self._table.is_alone(request.slot) else requests).append(request)
        return self._claim(requests)

    def _claim_alone(self) -> list[Claim]:
        """Claim one of the images that are to be batches of their own, if there is one.

        They are not claimed before: what a worker holds when it dies is suspect.
        """
        claims: list[Claim] = []
        while self._alone and not claims:
            claims = self._claim([self._alone.popleft()])
        return claims

    def _claim(self, requests: Iterable[Request]) -> list[Claim]:
        now = time.monotonic()
        claims = (self._table.claim(slot, generation, self._worker, now) for slot, generation in requests)
        current = [claim for claim in claims if claim is not None]
        self._answer(Answer(c.slot, c.generation, Status.SKIPPED) for c in current if not c.is_wanted)
        return [claim for claim in current if claim.is_wanted]

    def _infer(self, lit_api: ViTAPI, batch: list[Claim]) -> list[tuple[Status, Prediction]]:
        """Run the LitAPI's hooks on a batch; a failure is logged and becomes the status of every image in it.

        Where the device's memory does not suffice, the batch is split in halves, down to single images.
        """
        try:
            staged = lit_api.batch([self._table.pixels[claim.slot] for claim in batch])
            staged_at = time.monotonic()
            predictions = lit_api.unbatch(lit_api.predict(staged))
            self._model_times.observe(time.monotonic() - staged_at)
            if len(predictions) != len(batch):
                raise RuntimeError(f"the model gave {len(predictions)} predictions for {len(batch)} images")
            return [(Status.OK, prediction) for prediction in predictions]
        except OutOfDeviceMemory:
            logger.warning("the device's memory does not suffice for a batch of %d", len(batch))
        except Exception:
            logger.exception("a batch of %d failed", len(batch))
            return [(Status.FAILED, _NOTHING)] * len(batch)
        # Out here the exception is gone, and with it the frames that hold the batch's tensors.
        lit_api.free_memory()
        if len(batch) == 1:
            return [(Status.OUT_OF_MEMORY, _NOTHING)]
        half = len(batch) // 2
        return self._infer(lit_api, batch[:half]) + self._infer(lit_api, batch[half:])

    def _answer(self, answers: Any) -> None:
        """Send answers to the HTTP processes that own their slots: one write each, so that each wakes once."""
        by_owner: defaultdict[int, list[bytes]] = defaultdict(list)
        for answer in answers:
            by_owner[self._table.owner_of(answer.slot)].append(answer.pack())
        for owner, records in by_owner.items():
            self._answers[owner].write(records)
