"""The loop with batches in flight; the tests act as the device and decide when it has completed one."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.loop_bench import EchoAPI, LoopBench
from vit_api.errors import OutOfDeviceMemory
from vit_api.ipc.records import AnswerRecord, Status, unpack_answers
from vit_api.ipc.slots import SlotState
from vit_api.processes.recovery import Recovery
from vit_api.worker.batching import BatchingPolicy


class Ticket:
    """A batch on the device."""

    def __init__(self, name: str, values: list[int], polls: int) -> None:
        self.name = name
        self.values = values
        self.polls_left = polls


class DeviceAPI(EchoAPI):
    """A LitAPI whose device completes a batch after a number of polls.

    Attributes:
        polls: The number of polls that a batch launched from now on takes.
        events: `+1` when the first batch was launched, `=1` when its results were collected, and so on.
    """

    def __init__(self, polls: int = 10) -> None:
        super().__init__()
        self.polls = polls
        self.events: list[str] = []
        self.tickets: list[Ticket] = []
        self.fails_late = False

    def predict(self, x: NDArray[np.uint8], **_: Any) -> Any:
        values = super().predict(x)
        self.tickets.append(Ticket(str(len(self.tickets) + 1), values, self.polls))
        self.events.append("+" + self.tickets[-1].name)
        return self.tickets[-1]

    def is_done(self, output: Any) -> bool:
        output.polls_left -= 1
        return output.polls_left < 0

    def unbatch(self, output: Any) -> Any:
        assert output.polls_left < 0, "the loop must poll, and never block on the device"
        self.events.append("=" + output.name)
        if self.fails_late:
            self.fails_late = False
            raise RuntimeError("a planted failure")
        return super().unbatch(output.values)


class DeviceBench(LoopBench):
    """The loop's bench with such a device."""

    api: DeviceAPI

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.api = DeviceAPI(**options)

    def queue_many(self, first: int, count: int) -> None:
        for slot in range(first, first + count):
            self.queue(slot, slot)

    def step(self) -> dict[int, AnswerRecord]:
        """Run the loop once; return the answers."""
        self.loop.run(self.api)
        return {answer.slot: answer for answer in unpack_answers(self.answers.read(100))}


def statuses(answers: dict[int, AnswerRecord]) -> dict[int, Status]:
    return {slot: answer.status for slot, answer in answers.items()}


def test_a_single_image_is_answered_when_it_completes() -> None:
    """It needs no later request to push it out."""
    bench = DeviceBench(polls=3)
    bench.queue(0, 7)
    assert bench.step() == {}
    assert bench.step()[0].prediction.indices == (7,)
    assert bench.api.events == ["+1", "=1"]


def test_a_full_batch_is_staged_behind_a_running_one() -> None:
    """It is launched while the first batch runs, which is answered without waiting for it."""
    bench = DeviceBench()
    bench.queue_many(0, 32)
    assert bench.step() == {}
    bench.queue_many(32, 32)
    assert sorted(bench.step()) == list(range(32))
    assert bench.api.events == ["+1", "+2", "=1"]
    bench.api.tickets[1].polls_left = 0
    assert {slot: a.prediction.indices for slot, a in bench.step().items()} == {s: (s,) for s in range(32, 64)}
    assert bench.api.batches == [32, 32]


def test_a_partial_batch_stays_queued_while_the_device_is_busy() -> None:
    """Its images stay unclaimed, so that another worker can take them and more images can join."""
    bench = DeviceBench(polls=20)
    bench.queue_many(0, 32)
    bench.step()
    bench.queue_many(32, 5)
    while_busy: list[SlotState] = []
    is_done = bench.api.is_done

    def unclaimed_while_busy(output: Any) -> bool:
        if output.name == "1" and output.polls_left > 0:
            while_busy.extend(bench.table.state_of(slot) for slot in range(32, 37))
            if output.polls_left == 5:
                bench.queue_many(37, 3)
        return is_done(output)

    bench.api.is_done = unclaimed_while_busy  # type: ignore[method-assign]
    assert len(bench.step()) == 32
    assert set(while_busy) == {SlotState.QUEUED}
    assert len(bench.step()) == 8
    assert bench.api.batches == [32, 8]


def test_the_device_gets_work_before_the_answers_are_written() -> None:
    """When a batch completes, queued images are launched first, so that the device computes while the host answers."""
    bench = DeviceBench()
    bench.queue_many(0, 20)
    assert bench.step() == {}
    bench.queue_many(20, 5)
    assert sorted(bench.step()) == list(range(20))
    assert bench.api.events == ["+1", "+2", "=1"]
    assert sorted(bench.step()) == list(range(20, 25))
    assert bench.api.events == ["+1", "+2", "=1", "=2"]


def test_a_partial_batch_waits_for_incoming_images() -> None:
    """It is not launched while another image is in decoding, until its oldest image has waited `max_wait_s`."""
    bench = DeviceBench()
    bench.loop._policy = BatchingPolicy(max_batch_size=32, max_wait_s=3600)
    bench.queue_many(0, 20)
    bench.step()
    bench.queue_many(20, 5)
    assert bench.slots.take() is not None
    assert sorted(bench.step()) == list(range(20))
    assert bench.api.events == ["+1", "=1"]
    bench.table._shared["queued_at"][22] -= 7200
    assert bench.step() == {}
    assert bench.api.batches == [20, 5]


def test_inference_time_excludes_the_next_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch ends when the device completes it, before the next one is launched and before it is answered."""
    bench = DeviceBench()
    bench.queue_many(0, 20)
    bench.step()
    bench.queue_many(20, 5)
    predict, launched_at = bench.api.predict, []

    def launch(x: Any, **options: Any) -> Any:
        launched_at.append(time.monotonic())
        return predict(x, **options)

    monkeypatch.setattr(bench.api, "predict", launch)
    assert len(bench.step()) == 20
    assert bench.loop._done_at <= launched_at[0]
    second = bench.step()[24]
    assert second.queue_s + second.inference_s == pytest.approx(
        bench.loop._done_at - bench.table._shared["queued_at"][24], abs=1e-5
    )


def test_no_batch_is_launched_when_other_workers_took_the_images() -> None:
    """The loop saw queued images, but their records are gone when it reads the pipe."""
    bench = DeviceBench(polls=20)
    bench.queue(0, 0)
    bench.step()
    bench.queue_many(1, 40)
    for record in range(40):
        assert bench.requests.read(1), record
    assert bench.step() == {}
    while not bench.step():
        pass
    assert bench.api.events == ["+1", "=1"]


def test_a_failed_launch_fails_only_its_batch() -> None:
    """The batch in flight is answered, then the failed one."""
    bench = DeviceBench()
    bench.queue_many(0, 32)
    bench.step()
    bench.queue_many(32, 31)
    bench.queue(63, 255)
    answers = bench.step()
    assert statuses(answers) == {slot: Status.OK if slot < 32 else Status.FAILED for slot in range(64)}


def test_a_failed_collection_fails_only_its_batch() -> None:
    """The batch staged behind it is answered."""
    bench = DeviceBench()
    bench.queue_many(0, 32)
    bench.step()
    bench.queue_many(32, 32)
    bench.api.fails_late = True
    assert set(statuses(bench.step()).values()) == {Status.FAILED}
    bench.api.tickets[1].polls_left = 0
    assert set(statuses(bench.step()).values()) == {Status.OK}


@pytest.mark.parametrize("is_broken", [pytest.param(False, id="batch failed"), pytest.param(True, id="device broken")])
def test_an_error_during_a_poll(is_broken: bool) -> None:
    """CUDA reports errors late: the batch fails, and a device that is broken for good ends the worker."""
    bench = DeviceBench()
    bench.api.is_broken = is_broken

    def fail(_: Any) -> Any:
        raise RuntimeError("a planted CUDA error")

    bench.api.is_done = bench.api.unbatch = fail  # type: ignore[method-assign]
    bench.queue(0, 7)
    if is_broken:
        with bench.ends_the_process():
            bench.step()
        assert bench.table.state_of(0) == SlotState.RUNNING
    else:
        assert statuses(bench.step()) == {0: Status.FAILED}


def test_a_batch_that_does_not_fit_beside_another_is_retried() -> None:
    """It is retried in halves once the batch in flight is answered."""
    bench = DeviceBench()
    bench.queue_many(0, 32)
    bench.step()
    bench.api.capacity = 16
    bench.queue_many(32, 32)
    answers = bench.step()
    assert statuses(answers) == dict.fromkeys(range(64), Status.OK)
    assert {slot: answer.prediction.indices for slot, answer in answers.items()} == {s: (s,) for s in range(64)}
    assert bench.api.events == ["+1", "=1", "+2", "=2", "+3", "=3"]
    assert bench.api.freed == 1


def test_an_out_of_memory_at_the_end_does_not_mix_batches() -> None:
    """The batch is retried while the one staged behind it runs; each image keeps its own answer."""
    bench = DeviceBench()
    bench.queue_many(0, 32)
    bench.step()
    bench.queue_many(32, 32)
    unbatch, calls = bench.api.unbatch, []

    def short_of_memory(output: Any) -> Any:
        calls.append(output.name)
        if len(calls) == 1:
            raise OutOfDeviceMemory("planted")
        return unbatch(output)

    bench.api.unbatch = short_of_memory  # type: ignore[method-assign]
    first = bench.step()
    bench.api.tickets[1].polls_left = 0
    second = bench.step()
    assert calls == ["1", "3", "4", "2"]
    answers = first | second
    assert {slot: answer.prediction.indices for slot, answer in answers.items()} == {s: (s,) for s in range(64)}


def test_a_dead_worker_loses_all_batches_in_flight() -> None:
    """Each image of both batches is reported to its owner as lost, once."""
    bench = DeviceBench()
    bench.queue_many(0, 32)
    bench.step()
    bench.queue_many(32, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.api, "unbatch", lambda _: (_ for _ in ()).throw(SystemExit))  # as if the process died
        with pytest.raises(SystemExit):
            bench.step()
    Recovery(bench.table, bench.request_pipes, [bench.answers]).worker_died(0)
    lost = list(unpack_answers(bench.answers.read(100)))
    assert sorted(answer.slot for answer in lost) == list(range(64))
    assert {answer.status for answer in lost} == {Status.LOST}


def test_an_isolated_image_has_the_device_to_itself() -> None:
    """It is dispatched once the batch before it is answered, and none is staged behind it."""
    bench = DeviceBench()
    bench.queue_many(0, 32)
    bench.step()
    bench.queue_many(32, 32)
    bench.isolate(63)
    bench.queue(64, 64)  # in place of the isolated image, whose record is among the others'
    assert len(bench.step()) == 32
    assert bench.api.batches == [32, 32]
    bench.queue_many(65, 32)
    assert len(bench.step()) == 32
    assert bench.step() == {}
    assert bench.api.batches == [32, 32, 1]
    assert list(bench.step()) == [63]
    assert bench.api.events == ["+1", "+2", "=1", "=2", "+3", "=3"]
    assert bench.table.count_waiting() == 32


def test_a_hanging_device_gets_no_heartbeat() -> None:
    """Polling alone is no progress, so that the supervisor detects the hang."""
    bench = DeviceBench(polls=200)
    bench.queue(0, 1)
    bench.step()
    started_at = bench.worker_board.heartbeat_at(0)
    looked = []
    is_done = bench.api.is_done

    def look(output: Any) -> bool:
        looked.append(bench.worker_board.heartbeat_at(0))
        return is_done(output)

    bench.api.is_done = look  # type: ignore[method-assign]
    bench.step()
    assert len(looked) > 100
    assert set(looked) == {started_at}
    assert bench.worker_board.heartbeat_at(0) > started_at


def test_time_staged_behind_another_batch_counts_as_queue_time() -> None:
    """Inference of a staged batch begins when the device completes the batch before it."""
    bench = DeviceBench()
    bench.queue_many(0, 32)
    bench.step()
    bench.queue_many(32, 32)
    first = bench.step()[0]
    first_done_at = bench.loop._done_at
    bench.api.tickets[1].polls_left = 0
    second = bench.step()[63]
    assert second.queue_s == pytest.approx(first_done_at - bench.table._shared["queued_at"][63], abs=1e-5)
    assert second.inference_s == pytest.approx(bench.loop._done_at - first_done_at, abs=1e-5)
    assert first.inference_s > 0
