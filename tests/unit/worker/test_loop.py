"""The worker's loop on a real table and real pipes, with a LitAPI whose model is arithmetic."""

from __future__ import annotations

import math
import time
from typing import Any

import litserve as ls
import numpy as np
import pytest
from numpy.typing import NDArray

from vit_api.errors import OutOfDeviceMemory
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import AnswerRecord, Prediction, RecordPipe, RequestRecord, Status, unpack_answers
from vit_api.ipc.slots import SlotState, SlotTable
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.metrics import BATCH_DURATION, BATCH_SIZE, COUNTED, MODEL_DURATION, QUEUE_WAIT
from vit_api.worker.batching import BatchingPolicy
from vit_api.worker.loop import SlotLoop

_SLOTS = 128


class EchoAPI(ls.LitAPI):
    """Names the first pixel's value as the most probable class; 255 fails, 254 has no room, 253 overflows."""

    batches: list[int]

    def __init__(self) -> None:
        super().__init__(max_batch_size=32)
        self.batches = []
        self.most_that_fit = 32
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
        if len(x) > self.most_that_fit or (x == 254).any():
            raise OutOfDeviceMemory("planted")
        return [int(pixels[0, 0, 0]) for pixels in x]

    def is_done(self, output: list[int]) -> bool:
        return True

    def unbatch(self, output: list[int]) -> list[Prediction]:
        return [Prediction((value,), (math.inf if value == 253 else 0.0,), 1.0) for value in output]


class Bench:
    """A table with one owner, a loop, and a LitAPI."""

    def __init__(self) -> None:
        self.table = SlotTable(1, _SLOTS, (1, 1, 3))
        self.requests = RecordPipe.for_requests(_SLOTS)
        self.answers = RecordPipe.for_answers(_SLOTS)
        self.counts = MetricsBoard(["worker-0"], COUNTED)
        self.board = WorkerBoard(1)
        policy = BatchingPolicy(max_batch_size=32, max_wait_s=0.005)
        self.loop = SlotLoop(self.table, self.board, self.requests, [self.answers], policy, counts=self.counts)
        self.loop.take_number(0)
        self.api = EchoAPI()

    def queue(self, slot: int, value: int, timeout_s: float = 60.0) -> None:
        """Queue an image whose pixels have one value."""
        generation = self.table.start_decoding(slot, time.monotonic() + timeout_s)
        self.table.pixels[slot] = value
        self.table.queue(slot, time.monotonic())
        self.requests.write([RequestRecord(slot, generation).pack()])

    def suspect(self, slot: int) -> None:
        """Make a queued slot one whose worker died."""
        self.table._move(slot, SlotState.RUNNING)
        self.table.requeue(slot, isolated=True)

    def run_until(self, count: int) -> dict[int, AnswerRecord]:
        """Run batches until so many answers are there, and return them by slot."""
        answers: dict[int, AnswerRecord] = {}
        while len(answers) < count:
            self.loop.run(self.api)
            answers |= {answer.slot: answer for answer in unpack_answers(self.answers.read(_SLOTS))}
        return answers


def test_each_slot_gets_its_own_answer_in_full_batches() -> None:
    """40 waiting images make a batch of 32 and one of 8."""
    bench = Bench()
    for slot in range(40):
        bench.queue(slot, slot)
    answers = bench.run_until(40)
    assert bench.api.batches == [32, 8]
    assert {slot: answer.prediction.indices for slot, answer in answers.items()} == {s: (s,) for s in range(40)}
    assert {answer.batch_size for answer in answers.values()} == {32, 8}


@pytest.mark.parametrize("why", [pytest.param("abandoned", id="client left"), pytest.param("late", id="deadline over")])
def test_an_unwanted_image_never_enters_a_batch(why: str) -> None:
    """It is answered as skipped, so that its owner can free the slot; the others are served."""
    bench = Bench()
    bench.queue(0, 1, timeout_s=60.0 if why == "abandoned" else 0.0)
    if why == "abandoned":
        bench.table.abandon(0)
    bench.queue(1, 2)
    answers = bench.run_until(2)
    assert bench.api.batches == [1]
    assert answers[0].status == Status.SKIPPED
    assert answers[1].status == Status.OK


def test_a_worker_whose_device_broke_ends_with_its_images() -> None:
    """They stay the worker's, unanswered, so that the next one is given them."""
    bench = Bench()
    bench.api.is_broken = True
    bench.queue(0, 255)
    with pytest.raises(SystemExit):
        bench.run_until(1)
    assert bench.table.count_by_state()[SlotState.RUNNING] == 1
    assert bench.answers.read(_SLOTS) == b""


def test_an_image_whose_numbers_overflow_fails_alone() -> None:
    """JSON has no infinity, and nobody should remember one."""
    bench = Bench()
    for slot, value in enumerate((7, 253, 8)):
        bench.queue(slot, value)
    answers = bench.run_until(3)
    assert [answers[slot].status for slot in range(3)] == [Status.OK, Status.FAILED, Status.OK]


def test_a_failing_batch_is_answered_and_the_loop_goes_on() -> None:
    """The model's exception becomes a status; the next batch is served."""
    bench = Bench()
    bench.queue(0, 255)
    assert bench.run_until(1)[0].status == Status.FAILED
    bench.queue(1, 7)
    assert bench.run_until(1)[1].prediction.indices == (7,)


def test_a_batch_that_does_not_fit_is_split() -> None:
    """In halves, as often as needed; each image gets its own answer, and the memory is freed before each try."""
    bench = Bench()
    bench.api.most_that_fit = 5
    for slot in range(32):
        bench.queue(slot, slot)
    bench.loop.run(bench.api)
    answers = {answer.slot: answer for answer in unpack_answers(bench.answers.read(_SLOTS))}
    assert [answers[slot].prediction.indices for slot in range(32)] == [(slot,) for slot in range(32)]
    assert {answer.status for answer in answers.values()} == {Status.OK}
    assert bench.api.batches == [32, 16, 8, 4, 4, 8, 4, 4, 16, 8, 4, 4, 8, 4, 4]
    assert bench.api.freed == 7


def test_an_image_that_does_not_fit_alone() -> None:
    """It is told so; its neighbours get their answers."""
    bench = Bench()
    for slot, value in enumerate([1, 254, 3, 4]):
        bench.queue(slot, value)
    bench.loop.run(bench.api)
    statuses = {answer.slot: answer.status for answer in unpack_answers(bench.answers.read(_SLOTS))}
    assert statuses == {0: Status.OK, 1: Status.OUT_OF_MEMORY, 2: Status.OK, 3: Status.OK}


def test_a_suspect_image_is_a_batch_of_its_own() -> None:
    """It is claimed only when it runs, so that it is not blamed for what another one does."""
    bench = Bench()
    for slot in range(6):
        bench.queue(slot, slot)
    for slot in (1, 4):
        bench.suspect(slot)
    bench.loop.run(bench.api)
    assert [bench.table.state_of(slot) for slot in (1, 4)] == [SlotState.QUEUED] * 2
    bench.loop.run(bench.api)
    assert [bench.table.state_of(slot) for slot in (1, 4)] == [SlotState.ANSWERED, SlotState.QUEUED]
    bench.loop.run(bench.api)
    assert bench.api.batches == [4, 1, 1]
    answers = list(unpack_answers(bench.answers.read(_SLOTS)))
    assert sorted(answer.slot for answer in answers) == list(range(6))


def test_suspect_images_and_others_take_turns() -> None:
    """However many others come, a suspect image is run; and the other way round."""
    bench = Bench()
    for slot in range(8):
        bench.queue(slot, slot)
    for slot in (1, 4, 5):
        bench.suspect(slot)
    for slot in range(10, 16):
        bench.loop.run(bench.api)
        bench.queue(slot, slot)  # somebody else is always there
    assert bench.api.batches == [5, 1, 2, 1, 2, 1]


def test_batches_and_waits_are_counted() -> None:
    """Each batch with its size and its times, each image with its wait; a batch that failed had no model run."""
    bench = Bench()
    for slot in range(33):
        bench.queue(slot, 255 if slot == 32 else slot)
    bench.run_until(33)
    places = {metric: bench.counts.totals(metric)[()] for metric in (BATCH_SIZE, BATCH_DURATION, QUEUE_WAIT)}
    assert [sum(numbers[:-1]) for numbers in places.values()] == [2, 2, 33]
    assert places[BATCH_SIZE][-1] == 33
    assert places[BATCH_DURATION][-1] > 0
    assert places[QUEUE_WAIT][-1] > 0
    assert sum(bench.counts.totals(MODEL_DURATION)[()][:-1]) == 1
