"""The slot table of several deployments: each sees its own images only, and keeps its share of the slots."""

from __future__ import annotations

import multiprocessing as mp

import numpy as np
import pytest

from vit_api.ipc.slots import OwnerSlots, SlotState, SlotTable, WorkerSlots
from vit_api.urgency import Urgency

_SHAPES = [(4, 4, 3), (2, 2, 3)]
_SLOTS = 8


class Bench:
    """A table of two deployments, and the slots of one HTTP process as each of them sees them."""

    def __init__(self) -> None:
        self.whole = SlotTable(1, _SLOTS, _SHAPES[0], 16, deployments=2)
        self.tables = [self.whole.of_deployment(number, shape) for number, shape in enumerate(_SHAPES)]
        self.restart()

    def restart(self) -> None:
        """Start the HTTP process, or its successor."""
        first = OwnerSlots(self.tables[0], 0)
        self.slots = [first, OwnerSlots(self.tables[1], 0, first)]

    def queue(self, deployment: int, urgency: Urgency = Urgency.NORMAL) -> tuple[int, int]:
        """Queue an image."""
        taken = self.slots[deployment].take(urgency=urgency)
        assert taken is not None
        self.slots[deployment].queue(taken[0], float(taken[0]))
        return taken


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_images_have_the_shape_of_their_deployment(bench: Bench) -> None:
    """They start where the slot does, and none reaches into the next slot."""
    for table, shape in zip(bench.tables, _SHAPES, strict=True):
        assert table.pixels.shape == (_SLOTS, *shape)
    bench.tables[1].pixels[3] = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert bench.whole.pixels[3].ravel()[:13].tolist() == [*range(12), 0]
    assert not bench.whole.pixels[[2, 4]].any()


def test_each_counts_its_own_images(bench: Bench) -> None:
    """A deployment's batch never waits for images of another, and none is recovered for another."""
    mine, other = bench.queue(0), bench.queue(1, Urgency.LOW)
    for number, own in ((0, mine), (1, other)):
        table = bench.tables[number]
        assert (table.count_waiting(), table.count_incoming()) == (1, 1)
        assert table.queued() == table.with_workers() == [own]
        assert table.oldest_waiting_at() == own[0]
    assert (bench.tables[0].has_low(), bench.tables[1].has_low()) == (False, True)
    assert bench.whole.count_by_state()[SlotState.QUEUED] == 2


def test_workers_with_one_number_do_not_mix(bench: Bench) -> None:
    """Each deployment numbers its workers from 0; what its worker 0 held is not of another's worker 0."""
    (mine, generation), other = bench.queue(0), bench.queue(1)
    assert WorkerSlots(bench.tables[0], 0).claim(mine, generation) is not None
    assert WorkerSlots(bench.tables[1], 0).claim(*other) is not None
    assert bench.tables[0].held_by(0) == [(mine, generation)]
    assert bench.tables[1].held_by(0) == [other]


def test_no_deployment_takes_what_is_kept_for_another(bench: Bench) -> None:
    """One whose workers are dead fills all but the share of the other, which still gets that."""
    taken = [bench.queue(0) for _ in range(6)]
    assert bench.slots[0].take() is None
    assert (bench.slots[0].free_count, bench.slots[1].free_count) == (0, 2)
    assert len({bench.queue(1)[0], bench.queue(1)[0], *(slot for slot, _ in taken)}) == _SLOTS
    assert bench.slots[1].take() is None
    claim = WorkerSlots(bench.tables[0], 0).claim(*taken[0])
    assert claim is not None
    WorkerSlots(bench.tables[0], 0).finish(claim.slot)
    bench.slots[0].release(claim.slot)
    assert bench.slots[1].take() is not None  # what is free belongs to any of them


def test_low_urgency_fills_no_ones_share(bench: Bench) -> None:
    """All deployments together take no more slots for images of low urgency than one model does."""
    assert [slots.max_of(Urgency.LOW) for slots in bench.slots] == [1, 1]
    assert [slots.max_of(Urgency.NORMAL) for slots in bench.slots] == [6, 6]
    bench.queue(0, Urgency.LOW)
    assert bench.slots[0].take(urgency=Urgency.LOW) is None
    assert bench.slots[1].take(urgency=Urgency.LOW) is not None


def test_a_successor_takes_over_what_each_deployment_holds(bench: Bench) -> None:
    """The slots of the dead process that workers may still read count for their deployments until they are answered."""
    for _ in range(6):
        bench.queue(0)
    bench.slots[1].take(urgency=Urgency.LOW)  # being decoded: free at once
    bench.restart()
    assert (bench.slots[0].free_count, bench.slots[1].free_count) == (0, 2)
    assert not bench.tables[1].has_low()
    slot, _ = bench.tables[0].queued()[0]
    bench.slots[0].release(slot)
    assert (bench.slots[0].free_count, bench.slots[1].free_count) == (1, 3)


def _fill(table: SlotTable) -> None:
    table.pixels[1] = 7


def test_a_spawned_worker_sees_its_deployments_pixels(bench: Bench) -> None:
    """The view of a deployment is passed on with the shape of its images."""
    process = mp.get_context("spawn").Process(target=_fill, args=(bench.tables[1],))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert bench.whole.pixels[1].ravel().tolist() == [7] * 12 + [0] * 36


def _answer(bench: Bench, deployment: int) -> tuple[int, int]:
    """Have an image computed, and release its slot."""
    slot, generation = bench.queue(deployment)
    worker = WorkerSlots(bench.tables[deployment], 0)
    assert worker.claim(slot, generation) is not None
    worker.finish(slot)
    bench.slots[deployment].release(slot)
    return slot, generation


def test_a_mirror_takes_the_released_slot_with_its_pixels(bench: Bench) -> None:
    """As an image of its own, of low urgency, which a stale answer does not touch."""
    bench.whole.pixels[0] = 9
    slot, generation = _answer(bench, 0)
    mirrored = bench.slots[1].take_again(slot, 5.0)
    assert mirrored == generation + 1
    assert bench.whole.pixels[0].ravel()[:12].tolist() == [9] * 12
    bench.slots[1].queue(slot, 1.0)
    assert not bench.slots[0].is_current(slot, generation)
    assert bench.tables[1].queued() == [(slot, mirrored)]
    assert bench.tables[1].urgency_of(slot) is Urgency.LOW
    claim = WorkerSlots(bench.tables[1], 0).claim(slot, mirrored, 4.9)
    assert claim is not None
    assert claim.is_wanted


def test_what_a_mirror_has_takes_nothing_from_others(bench: Bench) -> None:
    """It comes from the mirror's own share, and does not count as the low urgency of its clients."""
    slot, _ = _answer(bench, 0)
    free = bench.slots[0].free_count
    assert bench.slots[1].max_mirrored == 1
    assert bench.slots[1].take_again(slot, 5.0) is not None
    bench.slots[1].mirrored += 1
    assert bench.slots[0].free_count == free
    assert bench.slots[1].take(urgency=Urgency.LOW) is not None
    assert bench.slots[1].take(urgency=Urgency.LOW) is None


def test_more_than_half_of_all_slots(bench: Bench) -> None:
    """Whichever deployment has taken them."""
    taken = [bench.slots[number].take() for number in (0, 0, 1)]
    assert all(slots.is_mostly_free for slots in bench.slots)
    taken.append(bench.slots[1].take())
    assert not any(slots.is_mostly_free for slots in bench.slots)
    assert None not in taken


def test_one_model_has_no_mirror() -> None:
    """Nothing is kept for another deployment, so nothing may be taken for a mirror."""
    assert OwnerSlots(SlotTable(1, _SLOTS, _SHAPES[0]), 0).max_mirrored == 0
