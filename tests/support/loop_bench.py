"""The worker's loop on a real slot table and real pipes, with a LitAPI whose model is plain arithmetic."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import litserve as ls
import numpy as np
import pytest
from numpy.typing import NDArray

from vit_api.errors import OutOfDeviceMemory
from vit_api.ipc.batch_stats import BatchStats
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import AnswerRecord, Prediction, RecordPipe, RequestRecord, unpack_answers
from vit_api.ipc.slots import OwnerSlots, SlotTable, WorkerSlots
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.metrics import COUNTED
from vit_api.urgency import Urgency
from vit_api.worker import loop
from vit_api.worker.batching import BatchingPolicy
from vit_api.worker.loop import SlotLoop

SLOTS = 128


class EchoAPI(ls.LitAPI):
    """Predicts the first pixel's value as the class; 255 fails, 254 does not fit into memory, 253 overflows."""

    batches: list[int]

    def __init__(self) -> None:
        super().__init__(max_batch_size=32)
        self.batches = []
        self.capacity = 32
        self.freed = 0
        self.is_broken = False

    def has_working_device(self) -> bool:
        return not self.is_broken

    def free_memory(self) -> None:
        self.freed += 1

    def batch(self, inputs: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return np.stack(inputs)

    def predict(self, x: NDArray[np.uint8], **_: Any) -> list[int]:
        self.batches.append(len(x))
        if (x == 255).any():
            raise RuntimeError("a planted failure")
        if len(x) > self.capacity or (x == 254).any():
            raise OutOfDeviceMemory("planted")
        return [int(pixels[0, 0, 0]) for pixels in x]

    def is_done(self, output: list[int]) -> bool:
        return True

    def unbatch(self, output: list[int]) -> list[Prediction]:
        return [Prediction((value,), (math.inf if value == 253 else 0.0,), 1.0) for value in output]


class LoopBench:
    """A table with one owner, a loop, and a LitAPI."""

    def __init__(self, max_batch_size: int = 32) -> None:
        self.table = SlotTable(1, SLOTS, (1, 1, 3))
        self.slots = OwnerSlots(self.table, 0)
        self.request_pipes = [RecordPipe.for_requests(SLOTS) for _ in Urgency]
        self.requests = self.request_pipes[Urgency.NORMAL]
        self.answers = RecordPipe.for_answers(SLOTS)
        self.metrics_board = MetricsBoard(["worker-0"], COUNTED)
        self.worker_board = WorkerBoard(1)
        self.batch_stats = BatchStats(1, 32)
        self.loop = SlotLoop(
            self.table,
            self.worker_board,
            self.request_pipes,
            [self.answers],
            BatchingPolicy(max_batch_size=max_batch_size, max_wait_s=0.005),
            metrics_board=self.metrics_board,
            batch_stats=self.batch_stats,
        )
        self.loop.take_number(0)
        self.api = EchoAPI()

    def queue(self, slot: int, value: int, urgency: Urgency = Urgency.NORMAL, *, deadline: float = math.inf) -> None:
        """Queue an image whose pixels all have one value. Slots must be queued in their order."""
        taken = self.slots.take(deadline, urgency)
        assert taken is not None
        assert taken[0] == slot
        self.table.pixels[slot] = value
        self.slots.queue(slot, time.monotonic())
        self.request_pipes[urgency].write([RequestRecord(*taken).pack()])

    def isolate(self, slot: int) -> None:
        """Isolate a queued slot, as after repeated deaths of its worker."""
        generation = int(self.table._shared["generations"][slot])
        assert WorkerSlots(self.table, 9).claim(slot, generation) is not None
        self.slots.requeue(slot, isolated=True)

    @contextlib.contextmanager
    def ends_the_process(self) -> Iterator[None]:
        """Check that the loop ends the process, which is replaced by an exception here."""
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(loop, "_end_process", sys.exit)
            yield

    def run_until(self, count: int) -> dict[int, AnswerRecord]:
        """Run the loop until there are `count` answers, and return them by slot."""
        answers: dict[int, AnswerRecord] = {}
        while len(answers) < count:
            self.loop.run(self.api)
            answers |= {answer.slot: answer for answer in unpack_answers(self.answers.read(SLOTS))}
        return answers
