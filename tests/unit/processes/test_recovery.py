"""What becomes of a dead worker's images, on real tables and pipes; the test plays the workers and the owners."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.inference_bench import Bench, run
from tests.support.waiting import until
from vit_api.errors import InferenceFailed, WorkersGone
from vit_api.ipc.records import AnswerRecord, Status, unpack_requests
from vit_api.ipc.slots import Claim, SlotRange, SlotState, SlotTable
from vit_api.processes.recovery import Recovery


def _recovery(bench: Bench) -> Recovery:
    return Recovery(bench.table, bench.requests, [bench.answers])


def test_what_the_dead_worker_ran_is_run_again() -> None:
    """From the same pixels, and its client notices nothing."""

    async def scenario(bench: Bench) -> None:
        task = bench.submit(b"a")
        first = await bench.claim()
        _recovery(bench).worker_died(0)
        second = await bench.claim()
        assert second.queued_at == first.queued_at
        bench.answer(second)
        assert (await task).prediction.indices == (ord("a"),)

    run(Bench(), scenario)


def test_another_workers_images_are_left_alone() -> None:
    """Only what the dead one held is suspect."""

    async def scenario(bench: Bench) -> None:
        task = bench.submit(b"a")
        claim = await bench.claim()
        _recovery(bench).worker_died(1)
        await asyncio.sleep(0.01)
        assert bench.table.state_of(claim.slot) == SlotState.RUNNING
        bench.answer(claim)
        await task

    run(Bench(), scenario)


def test_a_record_that_was_read_and_not_claimed() -> None:
    """It is written again; what was still in the pipe is there once."""

    async def scenario(bench: Bench) -> None:
        tasks = [bench.submit(b"a"), bench.submit(b"b")]
        await until(lambda: bench.table.count_by_state()[SlotState.QUEUED] == 2)
        while not bench.requests.read(1):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        _recovery(bench).worker_died(0)
        assert len(list(unpack_requests(bench.requests.read(100)))) == 2
        _recovery(bench).worker_died(0)
        for _ in tasks:
            bench.answer(await bench.claim())
        await asyncio.gather(*tasks)

    run(Bench(), scenario)


def test_an_answer_that_was_sent_before_the_death_counts() -> None:
    """The image is not run again."""

    async def scenario(bench: Bench) -> None:
        task = bench.submit(b"a")
        bench.answer(await bench.claim())
        _recovery(bench).worker_died(0)
        assert (await task).prediction.indices == (ord("a"),)
        assert bench.requests.read(10) == b""

    run(Bench(), scenario)


def test_after_two_deaths_it_is_tried_alone_and_after_three_given_up() -> None:
    """Its third worker runs it alone; if that one dies, too, the client is told."""

    async def scenario(bench: Bench) -> None:
        task = bench.submit(b"a")
        for is_isolated in (False, False, True):
            claim = await bench.claim()
            assert bench.table.is_isolated(claim.slot) is is_isolated
            _recovery(bench).worker_died(0)
        with pytest.raises(InferenceFailed, match="died"):
            await task
        await bench.until_all_free()
        again = bench.submit(b"b")  # the slot's past is no burden on the next image
        claim = await bench.claim()
        assert not bench.table.is_isolated(claim.slot)
        _recovery(bench).worker_died(0)
        bench.answer(await bench.claim())
        await again

    run(Bench(slots=1), scenario)


def test_an_image_that_nobody_waits_for_is_not_run_again() -> None:
    """Its slot is free."""

    async def scenario(bench: Bench) -> None:
        task = bench.submit(b"a")
        await bench.claim()
        task.cancel()
        await asyncio.wait([task])
        _recovery(bench).worker_died(0)
        await bench.until_all_free()
        assert bench.requests.read(10) == b""

    run(Bench(), scenario)


def test_giving_up_answers_what_waits() -> None:
    """Queued and running images fail as the server's fault."""

    async def scenario(bench: Bench) -> None:
        tasks = [bench.submit(b"a"), bench.submit(b"b")]
        await bench.claim()
        await until(lambda: bench.table.count_by_state()[SlotState.QUEUED] == 1)
        _recovery(bench).give_up()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [WorkersGone] * 2

    run(Bench(), scenario)


def test_a_successor_takes_over_the_slots_of_a_dead_http_process() -> None:
    """What was being decoded is free at once, the rest when the worker lets go of it."""
    bench = Bench(slots=4)
    for slot in range(1, 4):
        bench.table.start_decoding(slot, time.monotonic() + 60)
    for slot in (2, 3):
        bench.table.queue(slot, time.monotonic())
    running = bench.table.claim(3, 1, 0, time.monotonic())
    assert running is not None

    async def scenario(successor: Bench) -> None:
        queued = successor.table.claim(2, 1, 0, time.monotonic())
        assert queued is not None
        assert not queued.is_wanted
        successor.answer(queued, Status.SKIPPED)
        successor.answer(running)
        await until(lambda: successor.range.free_count == 4)

    successor = Bench(slots=4)
    successor.table = bench.table
    successor.range = SlotRange(bench.table, 0)
    assert successor.range.free_count == 2
    successor.remake_client()
    run(successor, scenario)


def test_no_slot_of_a_dead_http_process_is_lost_for_ever() -> None:
    """Queued without a record; answered, and the answer read; skipped, and the answer read: all are free again."""
    dead = Bench(slots=4)
    for slot in range(3):
        dead.table.start_decoding(slot, time.monotonic() + 60)
        dead.table.queue(slot, time.monotonic())
    assert dead.table.claim(1, 1, 0, time.monotonic()) is not None
    dead.table.finish(1)  # its answer was read by the process that died, as was that of slot 2, which was skipped

    async def scenario(successor: Bench) -> None:
        Recovery(dead.table, successor.requests, [successor.answers]).http_process_died()
        for request in unpack_requests(successor.requests.read(100)):
            claim = dead.table.claim(request.slot, request.generation, 0, time.monotonic())
            assert claim is not None
            assert not claim.is_wanted
            successor.answer(claim, Status.SKIPPED)
        await until(lambda: successor.range.free_count == 4)

    successor = Bench(slots=4)
    successor.table = dead.table
    successor.range = SlotRange(dead.table, 0)
    successor.remake_client()
    run(successor, scenario)


def test_two_deaths_before_the_owner_hears_of_one() -> None:
    """The second notice finds the slot queued already, and costs nobody anything, least of all those behind it."""

    async def scenario(bench: Bench) -> None:
        first, second = bench.submit(b"a"), bench.submit(b"b")
        claims = {claim.slot: claim for claim in (await bench.claim(), await bench.claim())}
        lost, answered = sorted(claims.values())
        bench.answers.write([AnswerRecord(lost.slot, lost.generation, Status.LOST).pack()] * 2)
        bench.answer(answered)
        again = await bench.claim()
        assert not bench.table.is_isolated(again.slot), "one death was counted, not two"
        bench.answer(again)
        await asyncio.gather(first, second)

    run(Bench(), scenario)


def test_the_oldest_is_written_first() -> None:
    """The queue keeps its order."""
    table = SlotTable(1, 3, (1, 1, 3))
    for slot, queued_at in ((0, 3.0), (1, 1.0), (2, 2.0)):
        table.start_decoding(slot, 100.0)
        table.queue(slot, queued_at)
    assert [slot for slot, _ in table.queued()] == [1, 2, 0]
    claim = table.claim(1, 1, 5, 4.0)
    assert claim == Claim(1, 1, 1.0, True)
    assert table.held_by(5) == [(1, 1)]
    assert table.held_by(0) == []
