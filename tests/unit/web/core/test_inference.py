"""The inference client, with a decoder and a worker that the test controls."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.inference_bench import InferenceBench, running
from tests.support.waiting import LONG_S, until
from vit_api.errors import BadImage, DeadlineExceeded, InferenceFailed, NotReady, Overloaded
from vit_api.ipc.records import Status, unpack_requests
from vit_api.ipc.slots import SlotState
from vit_api.urgency import Urgency
from vit_api.web.core.single_flight import FlightDeadline

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("upload", "is_on_the_loop"), [(b"q", True), (b"s", False)], ids=["quick", "slow"])
async def test_what_is_quick_is_decoded_on_the_event_loop(upload: bytes, is_on_the_loop: bool) -> None:
    """All other images are decoded in threads."""
    async with running(InferenceBench()) as bench:
        task = bench.submit(upload)
        bench.answer(await bench.claim())
        assert (await task).prediction.indices == (upload[0],)
        assert (bench.decoded_in is threading.current_thread()) == is_on_the_loop


async def test_what_one_turn_decodes_is_sent_at_once() -> None:
    """One write per urgency has the records of all quick images that arrived together."""
    async with running(InferenceBench(8)) as bench:
        urgencies = [Urgency.NORMAL, Urgency.LOW, Urgency.NORMAL, Urgency.NORMAL]
        tasks = [bench.submit(b"q", urgency) for urgency in urgencies]
        writes: list[tuple[Urgency, int]] = []
        for urgency, pipe in zip(Urgency, bench.request_pipes, strict=True):
            pipe.write = _counted(pipe.write, urgency, writes)  # type: ignore[method-assign]
        await until(lambda: bench.table.count_by_state()[SlotState.QUEUED] == len(tasks) and bool(writes))
        assert writes == [(Urgency.NORMAL, 3), (Urgency.LOW, 1)]
        for pipe in bench.request_pipes:
            for request in unpack_requests(pipe.read(9)):
                claim = bench.worker.claim(*request)
                assert claim is not None
                bench.answer(claim)
        assert [(await task).prediction.indices for task in tasks] == 4 * [(ord("q"),)]


def _counted(
    write: Callable[[Iterable[bytes]], None], urgency: Urgency, writes: list[tuple[Urgency, int]]
) -> Callable[[Iterable[bytes]], None]:
    def counted(records: Iterable[bytes]) -> None:
        records = list(records)
        writes.append((urgency, len(records)))
        write(records)

    return counted


async def test_each_waiter_gets_its_own_prediction() -> None:
    """Answers may arrive in any order."""
    async with running(InferenceBench()) as bench:
        tasks = {value: bench.submit(bytes([value])) for value in (7, 8)}
        claims = [await bench.claim(), await bench.claim()]
        for claim in reversed(claims):
            bench.answer(claim)
        for value, task in tasks.items():
            assert (await task).prediction.indices == (value,)


async def test_no_worker_means_not_ready() -> None:
    """Before a worker is ready, images are refused and take no slot."""
    async with running(InferenceBench(is_ready=False)) as bench:
        with pytest.raises(NotReady):
            await bench.submit(b"a")


async def test_no_slot_means_overloaded() -> None:
    """With two slots, a third image is refused at once."""
    async with running(InferenceBench()) as bench:
        tasks = [bench.submit(b"a"), bench.submit(b"b")]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await bench.submit(b"c")
        for _ in tasks:
            bench.answer(await bench.claim())
        await asyncio.gather(*tasks)


async def test_a_bad_image_frees_its_slot() -> None:
    """A corrupt image is not queued, and its slot is freed."""
    async with running(InferenceBench()) as bench:
        with pytest.raises(BadImage):
            await bench.submit(b"!")
        assert bench.requests.read(1) == b""


async def test_a_failed_inference_is_reported() -> None:
    """The worker's status becomes the waiter's error."""
    async with running(InferenceBench()) as bench:
        task = bench.submit(b"a")
        bench.answer(await bench.claim(), Status.FAILED)
        with pytest.raises(InferenceFailed):
            await task


@pytest.mark.parametrize("stage", ["decoding", "queued", "running"])
async def test_leaving_at_any_stage_frees_the_slot_later(stage: str) -> None:
    """The slot is freed once its decoder or worker is done with it."""
    async with running(InferenceBench()) as bench:
        if stage == "decoding":
            bench.gate.clear()
        task = bench.submit(b"a")
        claim = await bench.claim() if stage == "running" else None
        if stage == "queued":
            await until(lambda: bench.table.state_of(0) == SlotState.QUEUED)
        else:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.slots.free_count == 1, "still taken"
        bench.gate.set()
        if stage == "queued":
            claim = await bench.claim()
            assert not claim.is_wanted
        if claim is not None:
            bench.answer(claim, Status.OK if stage == "running" else Status.SKIPPED)


async def test_a_cancelled_waiter_does_not_abandon_the_next_image_in_its_slot() -> None:
    """A late cancellation does not affect the slot's next use."""
    async with running(InferenceBench(slots=1)) as bench:
        first = bench.submit(b"a")
        bench.answer(await bench.claim())
        bench.client._read_answers()  # the answer is accepted; the waiter has not run yet
        bench.gate.clear()
        first.cancel()
        second_taken = bench.slots.take()
        assert second_taken is not None
        with pytest.raises(asyncio.CancelledError):
            await first
        assert not bench.slots.is_abandoned(second_taken[0])
        bench.slots.release(second_taken[0])


async def test_a_stale_answer_is_ignored() -> None:
    """An answer to an earlier use of the slot has no effect."""
    async with running(InferenceBench(slots=1)) as bench:
        first = bench.submit(b"a")
        old = await bench.claim()
        bench.answer(old)
        await first
        second = bench.submit(b"b")
        claim = await bench.claim()
        bench.answer(old)
        bench.client._read_answers()
        assert not second.done()
        bench.answer(claim)
        assert (await second).prediction.indices == (ord("b"),)


async def test_many_images_through_few_slots() -> None:
    """A thousand images through four slots each get their own result."""
    async with running(InferenceBench(slots=4)) as bench:
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                for request in unpack_requests(bench.requests.read(2)):
                    claim = bench.worker.claim(request.slot, request.generation)
                    assert claim is not None
                    bench.answer(claim)

        async def client(number: int) -> None:
            for step in range(250):
                value = (number * 61 + step) % 256
                upload = bytes([value]) + b"."  # never the lone "!" that can't be decoded
                assert (await bench.submit(upload)).prediction.indices == (value,)

        with ThreadPoolExecutor(1) as worker:
            working = worker.submit(work)
            try:
                await asyncio.gather(*(client(number) for number in range(4)))
            finally:
                stopped.set()
            working.result(LONG_S)


async def test_low_images_leave_slots_for_the_others() -> None:
    """They may take a quarter of the slots. The refusal says when to try again, estimated from their own rate."""
    async with running(InferenceBench(slots=8)) as bench:
        tasks = [bench.submit(b"a", Urgency.LOW), bench.submit(b"b", Urgency.LOW)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="low urgency") as refused:
            await bench.submit(b"c", Urgency.LOW)
        assert refused.value.retry_after_s
        tasks += [bench.submit(name) for name in (b"d", b"e", b"f", b"g", b"h", b"i")]
        await until(lambda: bench.table.count_by_state()[SlotState.QUEUED] == 8)
        for urgency in reversed(Urgency):
            for request in unpack_requests(bench.request_pipes[urgency].read(9)):
                claim = bench.worker.claim(*request)
                assert claim is not None
                assert claim.urgency is urgency
                bench.answer(claim)
        await asyncio.gather(*tasks)
        assert not bench.table.has_low()


async def test_the_successor_counts_the_low_slots_that_it_takes_over() -> None:
    """Slots that a worker can still read count until their answers arrive."""
    dead = InferenceBench(slots=8)
    for _ in range(2):
        assert dead.slots.take(math.inf, Urgency.LOW) is not None
    dead.slots.queue(1, 0.0)
    successor = InferenceBench(slots=8, table=dead.table)
    async with running(successor):
        assert successor.table.has_low()
        assert successor.slots.take(math.inf, Urgency.LOW) is not None
        assert successor.slots.take(math.inf, Urgency.LOW) is None
        successor.slots.release(0)
        claim = successor.worker.claim(1, 1)
        assert claim is not None
        successor.answer(claim, Status.SKIPPED)
        await until(lambda: not successor.table.has_low())


async def test_an_image_is_not_decoded_after_its_deadline() -> None:
    """Its caller may not have received the timeout yet."""
    async with running(InferenceBench()) as bench:
        with pytest.raises(DeadlineExceeded):
            await bench.submit(b"a", deadline=FlightDeadline(time.monotonic() - 1))
        assert not hasattr(bench, "decoded_in")


@pytest.mark.parametrize("stage", ["decoding", "running"])
async def test_an_image_that_is_alone_is_abandoned_at_its_deadline(stage: str) -> None:
    """Nothing else keeps its deadline."""
    async with running(InferenceBench()) as bench:
        if stage == "decoding":
            bench.gate.clear()
        waiting = asyncio.ensure_future(bench.client.infer(b"a", FlightDeadline(time.monotonic() + 0.2), is_alone=True))
        claim = None if stage == "decoding" else await bench.claim()
        with pytest.raises(DeadlineExceeded):
            await waiting
        bench.gate.set()
        if claim is not None:
            assert not bench.worker.is_wanted(claim.slot, time.monotonic())
            bench.answer(claim)


async def test_a_deadline_may_be_extended_while_an_image_waits() -> None:
    """The worker sees the new deadline. An image that takes the slot later keeps its own."""
    async with running(InferenceBench()) as bench:
        deadline = FlightDeadline(time.monotonic() + LONG_S)
        task = bench.submit(b"a", deadline=deadline)
        await until(lambda: bench.table.count_by_state()[SlotState.QUEUED] == 1)
        deadline.extend(deadline.at + LONG_S)
        claim = bench.worker.claim(0, 1, deadline.at - 1)
        assert claim is not None
        assert claim.is_wanted
        assert bench.requests.read(1)
        bench.answer(claim)
        await task
        other = bench.submit(b"b", deadline=FlightDeadline(time.monotonic() + LONG_S))
        claim = await bench.claim()
        deadline.extend(math.inf)
        assert not bench.slots.is_wanted(claim.slot, deadline.at)
        bench.answer(claim)
        await other


def test_each_class_has_its_part_of_the_slots() -> None:
    """Each has at least one, so that a request that can never be queued is told apart from one that can be retried."""
    for slots, low in ((1, 1), (7, 1), (8, 2)):
        owned = InferenceBench(slots=slots).slots
        assert [owned.max_of(urgency) for urgency in Urgency] == [slots, low]
