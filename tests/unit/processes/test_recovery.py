"""Recovery of a dead process's images, on real tables and pipes; the tests act as workers and owners."""

from __future__ import annotations

import asyncio
import select
import time

import pytest

from tests.support.inference_bench import InferenceBench, running
from tests.support.waiting import until
from vit_api.errors import InferenceFailed, WorkersGone
from vit_api.ipc.records import AnswerRecord, Status, unpack_requests
from vit_api.ipc.slots import Claim, OwnerSlots, SlotState, SlotTable, WorkerSlots
from vit_api.processes.recovery import Recovery

pytestmark = pytest.mark.anyio


def _recovery(bench: InferenceBench) -> Recovery:
    return Recovery(bench.table, bench.request_pipes, [bench.answers])


async def test_a_dead_workers_image_is_run_again() -> None:
    """It is queued with the same pixels and arrival time, and its caller gets an answer."""
    async with running(InferenceBench()) as bench:
        task = bench.submit(b"a")
        first = await bench.claim()
        _recovery(bench).worker_died(0)
        second = await bench.claim()
        assert second.queued_at == first.queued_at
        bench.answer(second)
        assert (await task).prediction.indices == (ord("a"),)


async def test_another_workers_images_keep_running() -> None:
    """Only images that the dead worker held are queued again."""
    async with running(InferenceBench()) as bench:
        task = bench.submit(b"a")
        claim = await bench.claim()
        _recovery(bench).worker_died(1)
        bench.client._read_answers()
        assert bench.table.state_of(claim.slot) == SlotState.RUNNING
        bench.answer(claim)
        await task


async def test_a_record_read_but_not_claimed_is_written_again() -> None:
    """Records that were still in the pipe are not duplicated."""
    async with running(InferenceBench()) as bench:
        tasks = [bench.submit(b"a"), bench.submit(b"b")]
        await until(lambda: bench.table.count_by_state()[SlotState.QUEUED] == 2)
        while not bench.requests.read(1):
            await asyncio.sleep(0.001)
        await until(lambda: select.select([bench.requests], [], [], 0)[0] != [])  # the other record is written, too
        _recovery(bench).worker_died(0)
        assert len(list(unpack_requests(bench.requests.read(100)))) == 2
        _recovery(bench).worker_died(0)
        for _ in tasks:
            bench.answer(await bench.claim())
        await asyncio.gather(*tasks)


async def test_an_answered_image_is_not_run_again() -> None:
    """An answer that was sent before the worker died is delivered."""
    async with running(InferenceBench()) as bench:
        task = bench.submit(b"a")
        bench.answer(await bench.claim())
        _recovery(bench).worker_died(0)
        assert (await task).prediction.indices == (ord("a"),)
        assert bench.requests.read(10) == b""


async def test_an_image_is_isolated_after_two_deaths_and_fails_after_three() -> None:
    """The third worker runs the image alone; if that one dies as well, the caller gets an error."""
    async with running(InferenceBench(slots=1)) as bench:
        task = bench.submit(b"a")
        for is_isolated in (False, False, True):
            claim = await bench.claim()
            assert bench.table.is_isolated(claim.slot) is is_isolated
            _recovery(bench).worker_died(0)
        with pytest.raises(InferenceFailed, match="crashed"):
            await task
        await bench.until_all_free()
        again = bench.submit(b"b")  # the next image in this slot starts with no deaths
        claim = await bench.claim()
        assert not bench.table.is_isolated(claim.slot)
        _recovery(bench).worker_died(0)
        bench.answer(await bench.claim())
        await again


async def test_an_abandoned_image_is_not_run_again() -> None:
    """When its worker dies, the slot is freed."""
    async with running(InferenceBench()) as bench:
        task = bench.submit(b"a")
        await bench.claim()
        task.cancel()
        await asyncio.wait([task])
        _recovery(bench).worker_died(0)
        await bench.until_all_free()
        assert bench.requests.read(10) == b""


async def test_giving_up_fails_all_images() -> None:
    """Queued and running images fail with WorkersGone."""
    async with running(InferenceBench()) as bench:
        tasks = [bench.submit(b"a"), bench.submit(b"b")]
        await bench.claim()
        await until(lambda: bench.table.count_by_state()[SlotState.QUEUED] == 1)
        _recovery(bench).give_up()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [WorkersGone] * 2


async def test_a_successor_takes_over_the_slots_of_a_dead_http_process() -> None:
    """Slots in decoding are freed at once, queued and running ones when their worker has answered."""
    dead = InferenceBench(slots=4)
    for _ in range(4):
        dead.slots.take()
    dead.slots.release(0)
    for slot in (2, 3):
        dead.slots.queue(slot, time.monotonic())
    running_claim = dead.worker.claim(3, 1)
    assert running_claim is not None
    successor = InferenceBench(slots=4, table=dead.table)
    assert successor.slots.free_count == 2
    async with running(successor):
        queued = successor.worker.claim(2, 1)
        assert queued is not None
        assert not queued.is_wanted
        successor.answer(queued, Status.SKIPPED)
        successor.answer(running_claim)
        await until(lambda: successor.slots.free_count == 4)


async def test_no_slot_of_a_dead_http_process_is_lost() -> None:
    """A slot queued without a record, one answered and one skipped, with both answers read, are all freed."""
    dead = InferenceBench(slots=4)
    for slot in range(3):
        dead.slots.take()
        dead.slots.queue(slot, time.monotonic())
    assert dead.worker.claim(1, 1) is not None
    dead.worker.finish(1)  # its answer was read by the process that died, as was that of slot 2, which was skipped
    successor = InferenceBench(slots=4, table=dead.table)
    async with running(successor):
        _recovery(successor).http_process_died()
        for request in unpack_requests(successor.requests.read(100)):
            claim = successor.worker.claim(request.slot, request.generation)
            assert claim is not None
            assert not claim.is_wanted
            successor.answer(claim, Status.SKIPPED)
        await until(lambda: successor.slots.free_count == 4)


async def test_a_repeated_lost_record_is_ignored() -> None:
    """When the slot is queued again already, the second record counts no death and delays no other answer."""
    async with running(InferenceBench()) as bench:
        first, second = bench.submit(b"a"), bench.submit(b"b")
        claims = {claim.slot: claim for claim in (await bench.claim(), await bench.claim())}
        lost, answered = sorted(claims.values())
        bench.answers.write([AnswerRecord(lost.slot, lost.generation, Status.LOST).pack()] * 2)
        bench.answer(answered)
        again = await bench.claim()
        assert not bench.table.is_isolated(again.slot), "one death was counted, not two"
        bench.answer(again)
        await asyncio.gather(first, second)


def test_queued_slots_are_listed_oldest_first() -> None:
    """Slots are written again in the order in which they were queued, not by number."""
    table = SlotTable(1, 3, (1, 1, 3))
    slots = OwnerSlots(table, 0)
    for slot, queued_at in ((0, 3.0), (1, 1.0), (2, 2.0)):
        assert slots.take() == (slot, 1)
        slots.queue(slot, queued_at)
    assert [slot for slot, _ in table.queued()] == [1, 2, 0]
    claim = WorkerSlots(table, 5).claim(1, 1)
    assert claim == Claim(1, 1, 1.0, True)
    assert table.held_by(5) == [(1, 1)]
    assert table.held_by(0) == []
