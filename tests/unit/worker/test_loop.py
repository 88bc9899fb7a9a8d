"""The worker's loop: batches, answers, failures, isolation and counts."""

from __future__ import annotations

import subprocess
import sys

from tests.support.loop_bench import SLOTS, LoopBench
from tests.support.server import ROOT
from vit_api.ipc.records import Status, unpack_answers
from vit_api.ipc.slots import SlotState
from vit_api.metrics import BATCH_DURATION, BATCH_SIZE, MODEL_DURATION, QUEUE_WAIT


def test_each_slot_gets_its_own_answer_in_full_batches() -> None:
    """40 waiting images make a batch of 32 and one of 8."""
    bench = LoopBench()
    for slot in range(40):
        bench.queue(slot, slot)
    answers = bench.run_until(40)
    assert bench.api.batches == [32, 8]
    assert {slot: answer.prediction.indices for slot, answer in answers.items()} == {s: (s,) for s in range(40)}
    assert {answer.batch_size for answer in answers.values()} == {32, 8}


def test_an_abandoned_image_never_enters_a_batch() -> None:
    """It is answered as skipped, so that its owner can free the slot; the others are served."""
    bench = LoopBench()
    bench.queue(0, 1)
    bench.slots.abandon(0)
    bench.queue(1, 2)
    answers = bench.run_until(2)
    assert bench.api.batches == [1]
    assert answers[0].status == Status.SKIPPED
    assert answers[1].status == Status.OK


def test_a_worker_whose_device_broke_ends_with_its_images() -> None:
    """They stay the worker's, unanswered, so that the next one is given them."""
    bench = LoopBench()
    bench.api.is_broken = True
    bench.queue(0, 255)
    with bench.ends_the_process():
        bench.run_until(1)
    assert bench.table.count_by_state()[SlotState.RUNNING] == 1
    assert bench.answers.read(SLOTS) == b""


_ENDS = """
import atexit, os
from tests.support.loop_bench import LoopBench
atexit.register(os.abort)  # as CUDA's finalizers may, on a broken device
bench = LoopBench()
bench.api.is_broken = True
bench.queue(0, 255)
bench.loop.run(bench.api)
"""


def test_a_broken_device_runs_no_finalizers() -> None:
    """The process ends with its own status, and its last message is in the log."""
    command = [sys.executable, "-c", _ENDS]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "the device no longer works" in ended.stderr


def test_an_image_whose_numbers_overflow_fails_alone() -> None:
    """JSON has no infinity, and none may be cached."""
    bench = LoopBench()
    for slot, value in enumerate((7, 253, 8)):
        bench.queue(slot, value)
    answers = bench.run_until(3)
    assert [answers[slot].status for slot in range(3)] == [Status.OK, Status.FAILED, Status.OK]


def test_a_failing_batch_is_answered_and_the_loop_goes_on() -> None:
    """The model's exception becomes a status; the next batch is served."""
    bench = LoopBench()
    bench.queue(0, 255)
    assert bench.run_until(1)[0].status == Status.FAILED
    bench.queue(1, 7)
    assert bench.run_until(1)[1].prediction.indices == (7,)


def test_a_batch_that_does_not_fit_is_split() -> None:
    """In halves, as often as needed; each image gets its own answer, and the memory is freed before each try."""
    bench = LoopBench()
    bench.api.most_that_fit = 5
    for slot in range(32):
        bench.queue(slot, slot)
    bench.loop.run(bench.api)
    answers = {answer.slot: answer for answer in unpack_answers(bench.answers.read(SLOTS))}
    assert [answers[slot].prediction.indices for slot in range(32)] == [(slot,) for slot in range(32)]
    assert {answer.status for answer in answers.values()} == {Status.OK}
    assert bench.api.batches == [32, 16, 8, 4, 4, 8, 4, 4, 16, 8, 4, 4, 8, 4, 4]
    assert bench.api.freed == 7


def test_an_image_that_does_not_fit_alone() -> None:
    """It fails with `out_of_memory`; the other images get their results."""
    bench = LoopBench()
    for slot, value in enumerate([1, 254, 3, 4]):
        bench.queue(slot, value)
    bench.loop.run(bench.api)
    statuses = {answer.slot: answer.status for answer in unpack_answers(bench.answers.read(SLOTS))}
    assert statuses == {0: Status.OK, 1: Status.OUT_OF_MEMORY, 2: Status.OK, 3: Status.OK}


def test_a_suspect_image_is_a_batch_of_its_own() -> None:
    """It is claimed only when it runs, so that it is not blamed for what another one does."""
    bench = LoopBench()
    for slot in range(6):
        bench.queue(slot, slot)
    for slot in (1, 4):
        bench.isolate(slot)
    bench.loop.run(bench.api)
    assert [bench.table.state_of(slot) for slot in (1, 4)] == [SlotState.QUEUED] * 2
    bench.loop.run(bench.api)
    assert [bench.table.state_of(slot) for slot in (1, 4)] == [SlotState.ANSWERED, SlotState.QUEUED]
    bench.loop.run(bench.api)
    assert bench.api.batches == [4, 1, 1]
    answers = list(unpack_answers(bench.answers.read(SLOTS)))
    assert sorted(answer.slot for answer in answers) == list(range(6))


def test_suspect_images_and_others_take_turns() -> None:
    """However many others come, a suspect image is run; and the other way round."""
    bench = LoopBench()
    for slot in range(8):
        bench.queue(slot, slot)
    for slot in (1, 4, 5):
        bench.isolate(slot)
    for slot in range(8, 14):
        bench.loop.run(bench.api)
        bench.queue(slot, slot)  # somebody else is always there
    assert bench.api.batches == [5, 1, 2, 1, 2, 1]


def test_batches_and_waits_are_counted() -> None:
    """Each batch with its size and its times, each image with its wait; a batch that failed had no model run."""
    bench = LoopBench()
    for slot in range(33):
        bench.queue(slot, 255 if slot == 32 else slot)
    bench.run_until(33)
    totals = {metric: bench.metrics_board.totals(metric)[()] for metric in (BATCH_SIZE, BATCH_DURATION, QUEUE_WAIT)}
    assert [sum(numbers[:-1]) for numbers in totals.values()] == [2, 2, 33]
    assert totals[BATCH_SIZE][-1] == 33
    assert totals[BATCH_DURATION][-1] > 0
    assert totals[QUEUE_WAIT][-1] > 0
    assert sum(bench.metrics_board.totals(MODEL_DURATION)[()][:-1]) == 1
