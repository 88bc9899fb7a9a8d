"""The worker's loop: batches, answers, failures, isolation and metrics."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from tests.support.loop_bench import SLOTS, LoopBench
from tests.support.server import ROOT
from tests.support.waiting import LONG_S
from vit_api.ipc.records import RequestRecord, Status, unpack_answers
from vit_api.ipc.slots import Claim, SlotState
from vit_api.metrics import BATCH_DURATION, BATCH_SIZE, MODEL_DURATION, QUEUE_WAIT, SKIPPED
from vit_api.urgency import Urgency
from vit_api.worker.batching import BatchingPolicy
from vit_api.worker.image_queue import ImageQueue


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
    totals = {metric: bench.metrics_board.totals(metric)[()] for metric in (BATCH_SIZE, BATCH_DURATION)}
    totals[QUEUE_WAIT] = bench.metrics_board.totals(QUEUE_WAIT)["normal",]
    assert [sum(numbers[:-1]) for numbers in totals.values()] == [2, 2, 33]
    assert totals[BATCH_SIZE][-1] == 33
    assert totals[BATCH_DURATION][-1] > 0
    assert totals[QUEUE_WAIT][-1] > 0
    assert sum(bench.metrics_board.totals(MODEL_DURATION)[()][:-1]) == 1


def test_an_image_of_normal_urgency_comes_first() -> None:
    """Whatever was queued before it. One of the others joins it, since nothing is known of the device."""
    bench = LoopBench()
    for slot in range(30):
        bench.queue(slot, slot, Urgency.LOW)
    bench.queue(30, 30)
    bench.loop.run(bench.api)
    answers = [answer.slot for answer in unpack_answers(bench.answers.read(SLOTS))]
    assert answers == [30, 0]
    waits = bench.metrics_board.totals(QUEUE_WAIT)
    assert [sum(waits[label][:-1]) for label in (("normal",), ("low",))] == [1, 1]


def test_without_others_images_of_low_urgency_fill_whole_batches() -> None:
    """Without normal images, no room is kept free for them."""
    bench = LoopBench(max_batch_size=16)
    for slot in range(24):
        bench.queue(slot, slot, Urgency.LOW)
    bench.run_until(24)
    assert bench.api.batches == [16, 8]


@pytest.mark.parametrize("max_batch_size", [1, 2, 32])
def test_images_of_low_urgency_never_starve(max_batch_size: int) -> None:
    """However many others wait, about one image in eight is of theirs, and no more."""
    bench = LoopBench(max_batch_size)
    low = SLOTS // 4
    for slot in range(SLOTS):
        bench.queue(slot, slot % 200, Urgency.LOW if slot < low else Urgency.NORMAL)
    order: list[int] = []
    while len(order) < SLOTS // 2:
        bench.loop.run(bench.api)
        order += [answer.slot for answer in unpack_answers(bench.answers.read(SLOTS))]
    served = [slot for slot in order if slot < low]
    assert served == sorted(served), "the oldest come first"
    assert 0.06 < len(served) / len(order) <= 0.16


def test_a_deadline_that_has_passed_is_kept_though_its_owner_is_late() -> None:
    """The image is answered as skipped, and counted; no batch has it."""
    bench = LoopBench()
    bench.queue(0, 1, deadline=time.monotonic() - 0.001)
    bench.queue(1, 2, deadline=time.monotonic() + LONG_S)
    answers = bench.run_until(2)
    assert bench.api.batches == [1]
    assert (answers[0].status, answers[1].status) == (Status.SKIPPED, Status.OK)
    assert bench.metrics_board.totals(SKIPPED)["expired", "normal"] == [1]


def test_a_batch_waits_while_all_cores_decode_what_fills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is claimed meanwhile, and all images are in one batch then."""
    bench = LoopBench(max_batch_size=4)
    bench.loop._policy = BatchingPolicy(max_batch_size=4, max_wait_s=LONG_S, shared_cores=1)
    bench.queue(0, 0)
    decoding = [bench.slots.take() for _ in range(3)]
    slept = []

    def decode_one(seconds: float) -> None:
        slept.append((seconds > 0, bench.table.count_waiting()))
        taken = decoding.pop(0)
        assert taken is not None
        bench.table.pixels[taken[0]] = taken[0]
        bench.slots.queue(taken[0], time.monotonic())
        bench.requests.write([RequestRecord(*taken).pack()])

    monkeypatch.setattr(time, "sleep", decode_one)
    bench.run_until(4)
    assert slept == [(True, 1), (True, 2), (True, 3)]
    assert bench.api.batches == [4]


@pytest.mark.parametrize("reason", ["expired", "abandoned"])
def test_an_image_that_waits_for_its_batch_may_be_dropped(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was claimed, but its batch is not dispatched yet: it never runs, and its slot is free again."""
    bench = LoopBench()
    bench.loop._policy = BatchingPolicy(max_batch_size=32, max_wait_s=LONG_S)
    bench.queue(0, 1)
    assert bench.slots.take() is not None  # another image is incoming, for which the batch waits
    wait, waited = ImageQueue.wait, []

    def leave_meanwhile(queue: ImageQueue, batch: Sequence[Claim], timeout_s: float) -> None:
        waited.append([claim.slot for claim in batch])
        if reason == "expired":
            bench.slots.extend(0, time.monotonic())
        else:
            bench.slots.abandon(0)
        bench.slots.release(1)
        bench.queue(1, 2)
        wait(queue, batch, timeout_s)

    monkeypatch.setattr(ImageQueue, "wait", leave_meanwhile)
    bench.loop.run(bench.api)
    answers = {answer.slot: answer.status for answer in unpack_answers(bench.answers.read(SLOTS))}
    assert (waited, answers) == ([[0]], {0: Status.SKIPPED, 1: Status.OK})
    assert bench.api.batches == [1]
    assert bench.metrics_board.totals(SKIPPED)[reason, "normal"] == [1]
    bench.slots.release(0)


def test_a_record_without_an_image_does_not_keep_the_loop_busy() -> None:
    """Recovery may write a record twice; the second one is read, though nothing of low urgency is there any more."""
    bench = LoopBench()
    bench.queue(0, 1, Urgency.LOW)
    bench.request_pipes[Urgency.LOW].write([RequestRecord(0, 1).pack()])
    answers = bench.run_until(1)
    assert answers[0].status == Status.OK
    bench.slots.release(0)
    assert not bench.table.has_low()
    bench.queue(0, 1)
    bench.loop._queue.wait((), LONG_S)
    bench.run_until(1)
    assert bench.request_pipes[Urgency.LOW].read(1) == b""


def test_the_times_of_batches_are_counted_by_their_size() -> None:
    """A batch that failed is not."""
    bench = LoopBench()
    for slot in range(34):
        bench.queue(slot, slot)
    bench.run_until(34)
    bench.queue(34, 255)
    bench.run_until(1)
    two, full = bench.batch_stats.totals()
    assert (two.size, two.batches, full.size, full.batches) == (2, 1, 32, 1)
    assert min(full.input_s, full.infer_s, full.output_s) > 0
    assert bench.batch_stats.last_at() == pytest.approx(time.time(), abs=3600)
