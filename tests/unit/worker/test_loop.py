"""The worker's loop: batches, answers, failures, isolation and metrics."""

from __future__ import annotations

import subprocess
import sys

from tests.support.loop_bench import SLOTS, LoopBench
from tests.support.server import ROOT
from vit_api.ipc.records import Status, unpack_answers
from vit_api.ipc.slots import SlotState
from vit_api.metrics import BATCH_DURATION, BATCH_SIZE, MODEL_DURATION, QUEUE_WAIT


def test_each_slot_gets_its_own_answer_in_full_batches() -> None:
    """40 queued images are run as a batch of 32 and one of 8."""
    bench = LoopBench()
    for slot in range(40):
        bench.queue(slot, slot)
    answers = bench.run_until(40)
    assert bench.api.batches == [32, 8]
    assert {slot: answer.prediction.indices for slot, answer in answers.items()} == {s: (s,) for s in range(40)}
    assert {answer.batch_size for answer in answers.values()} == {32, 8}


def test_an_abandoned_image_is_not_run() -> None:
    """It is answered as skipped, so that its owner can free the slot; other images are served."""
    bench = LoopBench()
    bench.queue(0, 1)
    bench.slots.abandon(0)
    bench.queue(1, 2)
    answers = bench.run_until(2)
    assert bench.api.batches == [1]
    assert answers[0].status == Status.SKIPPED
    assert answers[1].status == Status.OK


def test_a_broken_device_ends_the_worker() -> None:
    """Its images stay claimed and unanswered, so that recovery hands them to the next worker."""
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
atexit.register(os.abort)  # as CUDA's finalizers can on a broken device
bench = LoopBench()
bench.api.is_broken = True
bench.queue(0, 255)
bench.loop.run(bench.api)
"""


def test_a_broken_device_runs_no_finalizers() -> None:
    """The process exits with its own status, and its last message is in the log."""
    command = [sys.executable, "-c", _ENDS]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "the device no longer works" in ended.stderr


def test_an_overflowing_image_fails_alone() -> None:
    """An infinite logit, which JSON can't represent, fails its image; the rest of the batch is answered."""
    bench = LoopBench()
    for slot, value in enumerate((7, 253, 8)):
        bench.queue(slot, value)
    answers = bench.run_until(3)
    assert [answers[slot].status for slot in range(3)] == [Status.OK, Status.FAILED, Status.OK]


def test_the_loop_survives_a_failing_batch() -> None:
    """The model's exception becomes a status, and the next batch is served."""
    bench = LoopBench()
    bench.queue(0, 255)
    assert bench.run_until(1)[0].status == Status.FAILED
    bench.queue(1, 7)
    assert bench.run_until(1)[1].prediction.indices == (7,)


def test_a_batch_that_does_not_fit_is_split() -> None:
    """It is halved until its parts fit; each image gets its own answer, and memory is freed before each retry."""
    bench = LoopBench()
    bench.api.capacity = 5
    for slot in range(32):
        bench.queue(slot, slot)
    bench.loop.run(bench.api)
    answers = {answer.slot: answer for answer in unpack_answers(bench.answers.read(SLOTS))}
    assert [answers[slot].prediction.indices for slot in range(32)] == [(slot,) for slot in range(32)]
    assert {answer.status for answer in answers.values()} == {Status.OK}
    assert bench.api.batches == [32, 16, 8, 4, 4, 8, 4, 4, 16, 8, 4, 4, 8, 4, 4]
    assert bench.api.freed == 7


def test_an_image_too_large_for_the_device_fails() -> None:
    """An image that does not fit alone gets `out_of_memory`; the other images get their results."""
    bench = LoopBench()
    for slot, value in enumerate([1, 254, 3, 4]):
        bench.queue(slot, value)
    bench.loop.run(bench.api)
    statuses = {answer.slot: answer.status for answer in unpack_answers(bench.answers.read(SLOTS))}
    assert statuses == {0: Status.OK, 1: Status.OUT_OF_MEMORY, 2: Status.OK, 3: Status.OK}


def test_an_isolated_image_runs_alone() -> None:
    """It is claimed only when it runs, so that another image's crash does not count against it."""
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


def test_isolated_images_and_others_alternate() -> None:
    """Neither starves the other, even while new images keep arriving."""
    bench = LoopBench()
    for slot in range(8):
        bench.queue(slot, slot)
    for slot in (1, 4, 5):
        bench.isolate(slot)
    for slot in range(8, 14):
        bench.loop.run(bench.api)
        bench.queue(slot, slot)  # the queue is never empty
    assert bench.api.batches == [5, 1, 2, 1, 2, 1]


def test_batches_and_queue_waits_are_recorded() -> None:
    """Each batch counts in size and duration, each image in queue wait; a failed batch has no model duration."""
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
