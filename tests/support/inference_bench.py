"""An inference client on a real table and real pipes, with a decoder and a worker that the test plays by hand."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.waiting import LONG_S, until
from vit_api.deadline import Deadline
from vit_api.errors import BadImage
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import AnswerRecord, Prediction, RecordPipe, Status, unpack_requests
from vit_api.ipc.slots import Claim, SlotRange, SlotState, SlotTable
from vit_api.ipc.worker_board import WorkerBoard, WorkerState, WorkerStatus
from vit_api.metrics import DECODE
from vit_api.web.core.inference import InferenceClient

_READY = WorkerStatus(WorkerState.READY, "cpu", "CPU", "float32")


class Bench:
    """A client with `slots` slots; the first byte of an upload is its pixels, and `!` can't be decoded."""

    def __init__(self, slots: int = 2, is_ready: bool = True) -> None:
        self.table = SlotTable(1, slots, (1, 1, 3))
        self.range = SlotRange(self.table, 0)
        self.requests = RecordPipe.for_requests(slots)
        self.answers = RecordPipe.for_answers(slots)
        self.gate = threading.Event()
        self.gate.set()
        self.board = WorkerBoard(1)
        if is_ready:
            self.board.post(0, _READY)
        self.remake_client()

    def remake_client(self) -> None:
        """Make the client, of what the bench has now."""
        self.counts = MetricsBoard(["http-0"], [DECODE])
        self.client = InferenceClient(
            self,
            self.range,
            self.board,
            self.requests,
            self.answers,
            metrics_writer=self.counts.metrics_writer("http-0"),
            decode_threads=1,
        )

    def is_quick(self, upload: bytes) -> bool:
        return upload.startswith(b"q")

    def decode_request(self, request: bytes) -> NDArray[np.uint8]:
        self.decoded_in = threading.current_thread()
        assert self.gate.wait(LONG_S)
        if request == b"!":
            raise BadImage("planted")
        return np.full((1, 1, 3), request[0], np.uint8)

    def submit(self, upload: bytes, deadline: Deadline | None = None) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self._infer(upload, deadline or Deadline(time.monotonic() + LONG_S)))

    async def _infer(self, upload: bytes, deadline: Deadline) -> AnswerRecord:
        answer, decode_s = await self.client.infer(upload, deadline)
        assert decode_s > 0
        return answer

    async def claim(self) -> Claim:
        """Wait for a request's record and claim its slot, as a worker does."""
        await until(lambda: self.table.count_by_state()[SlotState.QUEUED] > 0)
        while not (records := self.requests.read(1)):
            await asyncio.sleep(0.001)
        request = next(unpack_requests(records))
        claim = self.table.claim(request.slot, request.generation, 0, time.monotonic())
        assert claim is not None
        return claim

    def answer(self, claim: Claim, status: Status = Status.OK) -> None:
        """Answer with the pixel's value as the class."""
        value = int(self.table.pixels[claim.slot, 0, 0, 0])
        self.answers.write(
            [AnswerRecord(claim.slot, claim.generation, status, Prediction((value,), (0.0,), 1.0)).pack()]
        )

    async def until_all_free(self) -> None:
        await until(lambda: self.range.free_count == len(self.table))
        assert self.table.count_by_state()[SlotState.FREE] == len(self.table)


def run(bench: Bench, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    """Run a scenario on a started client, and check that no slot is lost."""

    async def whole() -> None:
        bench.client.start()
        try:
            await scenario(bench)
            await bench.until_all_free()
        finally:
            bench.gate.set()
            bench.client.stop()

    asyncio.run(asyncio.wait_for(whole(), 2 * LONG_S))
