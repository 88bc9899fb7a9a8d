"""An `InferenceClient` on a real slot table and real pipes; the tests act as its workers."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator

import numpy as np
from numpy.typing import NDArray

from tests.support.waiting import LONG_S, until
from vit_api.decoding.cost import Cost
from vit_api.errors import BadImage
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import AnswerRecord, Prediction, RecordPipe, Status, unpack_requests
from vit_api.ipc.slots import Claim, OwnerSlots, SlotState, SlotTable, WorkerSlots
from vit_api.ipc.worker_board import WorkerBoard, WorkerState, WorkerStatus
from vit_api.metrics import DECODE
from vit_api.urgency import Urgency
from vit_api.web.core.caller import Caller
from vit_api.web.core.decode_turns import DecodeTurns
from vit_api.web.core.inference import InferenceClient
from vit_api.web.core.single_flight import FlightDeadline

_READY = WorkerStatus(WorkerState.READY, "cpu", "CPU", "float32")


class InferenceBench:
    """A client with `slots` slots. The first byte of an upload becomes its pixels; `!` can't be decoded.

    Args:
        slots: Number of slots.
        is_ready: Whether there is a worker.
        table: All slots; None: as many as said.
        sibling: The slots of another bench, if the table has several deployments.
        client_class: The client's class.
    """

    def __init__(
        self,
        slots: int = 2,
        is_ready: bool = True,
        table: SlotTable | None = None,
        *,
        sibling: OwnerSlots | None = None,
        client_class: type[InferenceClient] = InferenceClient,
    ) -> None:
        self.table = table or SlotTable(1, slots, (1, 1, 3))
        self.slots = OwnerSlots(self.table, 0, sibling)
        self.worker = WorkerSlots(self.table, 0)
        self.request_pipes = [RecordPipe.for_requests(slots) for _ in Urgency]
        self.requests = self.request_pipes[Urgency.NORMAL]
        self.answers = RecordPipe.for_answers(slots)
        self.gate = threading.Event()
        self.gate.set()
        self.worker_board = WorkerBoard(1)
        if is_ready:
            self.worker_board.publish(0, _READY)
        self.metrics_board = MetricsBoard(["http-0"], [DECODE])
        self.turns = DecodeTurns(1, 2**30)
        self.client = client_class(
            self,
            self.slots,
            self.worker_board,
            self.request_pipes,
            self.answers,
            metrics_writer=self.metrics_board.metrics_writer("http-0"),
            turns=self.turns,
        )

    def is_quick(self, upload: bytes) -> bool:
        return upload.startswith(b"q")

    def estimate_cost(self, upload: bytes) -> Cost:
        return Cost(0.001, 1)

    def decode_request(self, request: bytes) -> NDArray[np.uint8]:
        self.decoded_in = threading.current_thread()
        assert self.gate.wait(LONG_S)
        if request == b"!":
            raise BadImage("planted")
        return np.full((1, 1, 3), request[0], np.uint8)

    def submit(
        self, upload: bytes, urgency: Urgency = Urgency.NORMAL, deadline: FlightDeadline | None = None
    ) -> asyncio.Task[AnswerRecord]:
        """Run an upload in a new task."""
        return asyncio.ensure_future(self._infer(upload, urgency, deadline or FlightDeadline(math.inf)))

    async def _infer(self, upload: bytes, urgency: Urgency, deadline: FlightDeadline) -> AnswerRecord:
        answer, decode_s = await self.client.infer(upload, deadline, Caller(urgency=urgency))
        assert decode_s > 0
        return answer

    async def claim(self) -> Claim:
        """Wait for a request's record and claim its slot, as a worker does."""
        await until(lambda: self.table.count_by_state()[SlotState.QUEUED] > 0)
        while not (records := self.requests.read(1)):
            await asyncio.sleep(0.001)
        request = next(unpack_requests(records))
        claim = self.worker.claim(request.slot, request.generation)
        assert claim is not None
        return claim

    def answer(self, claim: Claim, status: Status = Status.OK) -> None:
        """Answer with the pixel's value as the class."""
        value = int(self.table.pixels[claim.slot, 0, 0, 0])
        self.answers.write(
            [AnswerRecord(claim.slot, claim.generation, status, Prediction((value,), (0.0,), 1.0)).pack()]
        )

    async def until_all_free(self) -> None:
        await until(lambda: self.slots.free_count == len(self.table))
        assert self.table.count_by_state()[SlotState.FREE] == len(self.table)


@contextlib.asynccontextmanager
async def running(bench: InferenceBench, *, checks: bool = True) -> AsyncIterator[InferenceBench]:
    """Start a bench's client, and check at the end that no slot is lost, unless its slots are shared."""
    bench.turns.start()
    bench.client.start()
    try:
        yield bench
        if checks:
            await bench.until_all_free()
    finally:
        bench.gate.set()
        bench.client.stop()
        bench.turns.stop()
