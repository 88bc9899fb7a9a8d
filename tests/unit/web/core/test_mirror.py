"""What a mirror gets, and that it costs the others nothing; the tests act as the workers of both versions."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.mirror_bench import MirrorBench, mirroring
from tests.support.waiting import until
from vit_api.errors import DeadlineExceeded, InferenceFailed, Overloaded, ViTError
from vit_api.ipc.records import AnswerRecord, Status
from vit_api.ipc.slots import SlotState
from vit_api.urgency import Urgency
from vit_api.web.core import mirror as mirror_module

pytestmark = pytest.mark.anyio


def _send(bench: MirrorBench, answer: AnswerRecord) -> asyncio.Future[AnswerRecord]:
    answered = bench.mirror.send(answer)
    assert answered is not None
    return answered


async def test_the_mirror_gets_the_same_pixels_once_the_answer_was_sent() -> None:
    """In the same slot, whose earlier answer does not count for it."""
    async with mirroring(MirrorBench()) as bench:
        answer = await bench.answer(b"a")
        assert bench.table.state_of(answer.slot) is SlotState.DECODING  # kept; no record was written
        answered = _send(bench, answer)
        claim = await bench.claim()
        assert (claim.slot, claim.urgency, claim.is_wanted) == (answer.slot, Urgency.LOW, True)
        bench.mirrored.answer(claim)
        assert (await answered).prediction.indices == (ord("a"),)
        assert bench.mirror.send(answer) is None  # once for each image
        assert bench.skipped == 0


async def test_the_share_is_drawn() -> None:
    """What is not drawn is no part of the traffic, and not skipped."""
    async with mirroring(MirrorBench(share=0.25)) as bench:
        bench.drawn = 0.25
        assert bench.mirror.send(await bench.answer(b"a")) is None
        bench.drawn = 0.2499
        answered = _send(bench, await bench.answer(b"a"))
        bench.mirrored.answer(await bench.claim())
        await answered
        assert bench.skipped == 0


async def test_nothing_is_kept_of_an_image_without_an_answer() -> None:
    """It could not be decoded, the model failed, or its caller left."""
    async with mirroring(MirrorBench()) as bench:
        with pytest.raises(ViTError):
            await bench.answering.submit(b"!")
        failing = bench.answering.submit(b"a")
        bench.answering.answer(await bench.answering.claim(), Status.FAILED)
        with pytest.raises(InferenceFailed):
            await failing
        leaving = bench.answering.submit(b"a")
        claim = await bench.answering.claim()
        leaving.cancel()
        await asyncio.wait([leaving])
        bench.answering.answer(claim)
        await bench.until_all_free()
        assert bench.skipped == 0


async def test_a_mirror_without_workers_gets_nothing() -> None:
    """The model is still loading, or was given up."""
    async with mirroring(MirrorBench(is_ready=False)) as bench:
        assert bench.mirror.send(await bench.answer(b"a")) is None
        assert bench.skipped == 1


async def test_half_of_the_slots_must_be_free_and_what_it_has_is_given_up() -> None:
    """What is kept is free at once; what is queued is abandoned, and free when a worker comes to it."""
    async with mirroring(MirrorBench(slots=32)) as bench:
        kept = await bench.answer(b"k")
        queued = _send(bench, await bench.answer(b"q"))
        held = [bench.answering.slots.take() for _ in range(14)]  # with these two: half
        assert bench.free == 16
        answer = await bench.answer(b"a")
        assert bench.mirror.send(answer) is None
        assert bench.mirror.send(kept) is None
        assert (bench.free, bench.skipped) == (17, 2)
        claim = await bench.claim()
        assert not claim.is_wanted
        bench.mirrored.answer(claim, Status.SKIPPED)
        with pytest.raises(DeadlineExceeded):
            await queued
        for taken in held:
            assert taken is not None
            bench.answering.slots.release(taken[0])


async def test_an_overloaded_mirror_skips_and_leaves_all_other_slots() -> None:
    """It has no more than half of its own share, whatever it is sent, and its clients still have the rest."""
    async with mirroring(MirrorBench(slots=32)) as bench:
        most = bench.mirrored.slots.max_mirrored
        assert most == 4
        free_before = bench.answering.slots.free_count
        sent = [_send(bench, await bench.answer(bytes([value]))) for value in range(most)]
        for _ in range(5):
            assert bench.mirror.send(await bench.answer(b"z")) is None
        assert bench.skipped == 5
        assert bench.answering.slots.free_count == free_before
        low = [bench.mirrored.slots.take(urgency=Urgency.LOW) for _ in range(4)]
        assert None not in low
        for taken in low:
            assert taken is not None
            bench.mirrored.slots.release(taken[0])
        for value in range(most):
            bench.mirrored.answer(await bench.claim())
            assert (await sent[value]).prediction.indices == (value,)


async def test_a_mirror_that_fails_on_every_image_gets_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in a while, until it answers one; a deadline that passed is no failure."""
    monkeypatch.setattr(mirror_module, "RETRY_S", 3600.0)
    async with mirroring(MirrorBench()) as bench:

        async def mirror(status: Status = Status.OK) -> None:
            answered = _send(bench, await bench.answer(b"a"))
            bench.mirrored.answer(await bench.claim(), status)
            await asyncio.wait([answered])

        for _ in range(mirror_module.MAX_FAILURES - 1):
            await mirror(Status.FAILED)
        await mirror()  # so these were not in a row
        for status in (Status.SKIPPED, *[Status.FAILED] * mirror_module.MAX_FAILURES):
            await mirror(status)
        for skipped in (1, 2):
            assert bench.mirror.send(await bench.answer(b"a")) is None
            assert bench.skipped == skipped
        monkeypatch.setattr(mirror_module, "RETRY_S", 0.0)
        await mirror()
        monkeypatch.setattr(mirror_module, "RETRY_S", 3600.0)
        await mirror()
        assert bench.skipped == 2


async def test_what_is_never_sent_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of a request with many images left, or one of the answers is of an aborted request."""
    monkeypatch.setattr(mirror_module, "MAX_KEPT_S", 0.05)
    async with mirroring(MirrorBench()) as bench:
        answers = [await bench.answer(b"a"), await bench.answer(b"b")]
        await until(lambda: bench.free == len(bench.table))
        assert bench.skipped == 2
        assert [bench.mirror.send(answer) for answer in answers] == [None, None]


async def test_what_is_sent_in_time_outlives_the_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer looks at what is kept only, not at what the mirror computes."""
    monkeypatch.setattr(mirror_module, "MAX_KEPT_S", 0.05)
    async with mirroring(MirrorBench()) as bench:
        answered = _send(bench, await bench.answer(b"a"))
        unsent = await bench.answer(b"b")
        await until(lambda: bench.skipped == 1)
        assert bench.mirror.send(unsent) is None
        bench.mirrored.answer(await bench.claim())
        assert (await answered).status is Status.OK


@pytest.mark.parametrize("status", [Status.FAILED, Status.OUT_OF_MEMORY, Status.UNAVAILABLE])
async def test_a_failure_reaches_only_the_future(status: Status) -> None:
    """The version that answers goes on."""
    async with mirroring(MirrorBench()) as bench:
        answered = _send(bench, await bench.answer(b"a"))
        bench.mirrored.answer(await bench.claim(), status)
        with pytest.raises(ViTError):
            await answered
        assert (await bench.answer(b"b")).prediction.indices == (ord("b"),)
        bench.mirror.give_up()


async def test_an_image_whose_worker_died_is_tried_again_like_any_other() -> None:
    """Its slot is still the mirror's, with the same pixels."""
    async with mirroring(MirrorBench()) as bench:
        answered = _send(bench, await bench.answer(b"a"))
        claim = await bench.claim()
        bench.mirrored.answer(claim, Status.LOST)
        again = await bench.claim()
        assert (again.slot, again.generation) == (claim.slot, claim.generation)
        bench.mirrored.answer(again)
        assert (await answered).prediction.indices == (ord("a"),)


async def test_clients_of_the_mirror_are_refused_by_their_own_images_only() -> None:
    """What it mirrors takes no more than half of what is kept for it."""
    async with mirroring(MirrorBench(slots=8)) as bench:
        answered = _send(bench, await bench.answer(b"a"))
        tasks = [bench.mirrored.submit(bytes([value])) for value in range(5)]
        await until(lambda: bench.table.count_by_state()[SlotState.QUEUED] == 6)
        with pytest.raises(Overloaded):
            await bench.mirrored.submit(b"z")
        for _ in tasks:
            bench.mirrored.answer(await bench.mirrored.claim())
        await asyncio.gather(*tasks)
        bench.mirrored.answer(await bench.claim())
        await answered
