"""The slot table: no slot is lost, used twice or answered with another's result; images keep their order."""

from __future__ import annotations

import gc
import multiprocessing as mp
import re
from collections import deque
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vit_api.ipc import slots as slots_module
from vit_api.ipc.records import (
    AnswerRecord,
    Prediction,
    RecordPipe,
    RequestRecord,
    Status,
    unpack_answers,
    unpack_requests,
)
from vit_api.ipc.slots import (
    TRANSITIONS,
    Claim,
    InvalidTransitionError,
    OwnerSlots,
    SlotState,
    SlotTable,
    WorkerSlots,
)

_OWNERS, _SLOTS, _WORKERS = 2, 3, 2


def test_a_full_table_gives_no_slot() -> None:
    """The table is the bounded queue: `take` returns None when no slot is free."""
    slots = OwnerSlots(SlotTable(1, 2, (1, 1, 3)), 0)
    assert {slots.take()[0], slots.take()[0]} == {0, 1}  # type: ignore[index]
    assert slots.take() is None


def test_each_owner_has_its_own_slots() -> None:
    """No slot belongs to two HTTP processes."""
    table = SlotTable(2, 3, (1, 1, 3))
    taken = [OwnerSlots(table, owner).take()[0] for owner in range(2)]  # type: ignore[index]
    assert [table.owner_of(slot) for slot in taken] == [0, 1]


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(["queue"], id="queue a free slot"),
        pytest.param(["release"], id="release a free slot"),
        pytest.param(["take", "release", "release"], id="release a slot twice"),
        pytest.param(["take", "queue", "queue"], id="queue a slot twice"),
    ],
)
def test_an_invalid_transition_raises(steps: list[str]) -> None:
    """A step that is not in TRANSITIONS raises."""
    slots = OwnerSlots(SlotTable(1, 1, (1, 1, 3)), 0)
    do = {"take": slots.take, "queue": lambda: slots.queue(0, 0.0), "release": lambda: slots.release(0)}
    with pytest.raises(InvalidTransitionError):
        for step in steps:
            do[step]()


def test_the_docstring_documents_the_state_machine() -> None:
    """Its table has exactly the transitions of TRANSITIONS, each with a method of the view that may make it."""
    row = re.compile(r"^ +([A-Z]+) +([a-z]+) +(owner|worker) +([A-Z]+)\b", re.MULTILINE)
    rows = row.findall(slots_module.__doc__ or "")
    views = {"owner": OwnerSlots, "worker": WorkerSlots}
    assert all(callable(getattr(views[writer], step)) for _, step, writer, _ in rows)
    documented = {(SlotState[before], SlotState[after]) for before, _, _, after in rows}
    assert documented == {(before, after) for before, afters in TRANSITIONS.items() for after in afters}


def test_an_abandoned_slot_is_claimed_as_unwanted() -> None:
    """A worker learns from the claim not to run an image that no caller waits for."""
    table = SlotTable(1, 1, (1, 1, 3))
    slots = OwnerSlots(table, 0)
    assert slots.take() == (0, 1)
    slots.queue(0, 9.0)
    slots.abandon(0)
    claim = WorkerSlots(table, 0).claim(0, 1)
    assert claim is not None
    assert not claim.is_wanted
    assert table.state_of(0) == SlotState.QUEUED


def test_a_stale_record_claims_nothing() -> None:
    """A record of an earlier generation of the slot can't claim it."""
    table = SlotTable(1, 1, (1, 1, 3))
    slots = OwnerSlots(table, 0)
    assert slots.take() == (0, 1)
    slots.release(0)
    assert slots.take() == (0, 2)
    slots.queue(0, 0.0)
    assert WorkerSlots(table, 0).claim(0, 1) is None


def _fill(table: SlotTable, value: int) -> None:
    table.pixels[1] = value


def test_a_spawned_process_sees_the_same_pixels() -> None:
    """The memory is shared with LitServe's spawned workers."""
    table = SlotTable(1, 2, (2, 2, 3))
    process = mp.get_context("spawn").Process(target=_fill, args=(table, 42))
    process.start()
    process.join(60)
    assert (table.pixels[1] == 42).all()
    assert (table.pixels[0] == 0).all()


class TableMachine(RuleBasedStateMachine):
    """Owners, workers and pipes, interleaved arbitrarily; the pixels of each image are its number."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table = SlotTable(_OWNERS, _SLOTS, (1, 1, 3))
        self.owners = [OwnerSlots(self.table, owner) for owner in range(_OWNERS)]
        self.workers = [WorkerSlots(self.table, worker) for worker in range(_WORKERS)]
        self.requests = RecordPipe.for_requests(len(self.table))
        self.answers = [RecordPipe.for_answers(_SLOTS) for _ in range(_OWNERS)]
        self.next_image = 0
        self.decoding: dict[int, tuple[int, int]] = {}  # slot: generation, image
        self.waiting: dict[int, tuple[int, int]] = {}
        self.abandoned: set[int] = set()  # images
        self.line: deque[int] = deque()  # images in the order of their records
        self.running: dict[int, list[tuple[Claim, int]]] = {worker: [] for worker in range(_WORKERS)}
        self.answered: set[int] = set()

    @rule(owner=st.integers(0, _OWNERS - 1))
    def take(self, owner: int) -> None:
        taken = self.owners[owner].take()
        held = len([s for s in (*self.decoding, *self.waiting) if self.table.owner_of(s) == owner])
        assert (taken is None) == (held == _SLOTS)
        if taken:
            slot, generation = taken
            assert slot not in self.decoding and slot not in self.waiting
            self.decoding[slot] = (generation, self.next_image)
            self.next_image += 1

    @precondition(lambda self: self.decoding)
    @rule(data=st.data(), is_good=st.booleans())
    def decode(self, data: st.DataObject, is_good: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.decoding)))
        generation, image = self.decoding.pop(slot)
        if not is_good:
            self.owners[self.table.owner_of(slot)].release(slot)
            return
        self.table.pixels[slot] = image % 256
        self.owners[self.table.owner_of(slot)].queue(slot, self.now)
        self.requests.write([RequestRecord(slot, generation).pack()])
        self.waiting[slot] = (generation, image)
        self.line.append(image)

    @precondition(lambda self: self.waiting or self.decoding)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted([*self.waiting, *self.decoding])))
        self.owners[self.table.owner_of(slot)].abandon(slot)
        self.abandoned.add((self.waiting.get(slot) or self.decoding[slot])[1])

    @rule(seconds=st.floats(0, 5))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(worker=st.integers(0, _WORKERS - 1), most=st.integers(1, 4))
    def claim(self, worker: int, most: int) -> None:
        for request in unpack_requests(self.requests.read(most)):
            claim = self.workers[worker].claim(request.slot, request.generation)
            assert claim is not None, "a stale record in the pipe"
            image = self.waiting[request.slot][1]
            assert self.line.popleft() == image, "not in order of arrival"
            if claim.is_wanted:
                assert image not in self.abandoned
                assert (self.table.pixels[request.slot] == image % 256).all()
                self.running[worker].append((claim, image))
            else:
                self._send(AnswerRecord(claim.slot, claim.generation, Status.SKIPPED))

    @rule(worker=st.integers(0, _WORKERS - 1))
    def finish(self, worker: int) -> None:
        for claim, image in self.running[worker]:
            assert (self.table.pixels[claim.slot] == image % 256).all(), "a slot was written to while it was read"
            self._send(AnswerRecord(claim.slot, claim.generation, Status.OK, Prediction((image,), (0.0,), 1.0)))
        self.running[worker].clear()

    def _send(self, answer: AnswerRecord) -> None:
        self.answers[self.table.owner_of(answer.slot)].write([answer.pack()])

    @rule(owner=st.integers(0, _OWNERS - 1))
    def read_answers(self, owner: int) -> None:
        for answer in unpack_answers(self.answers[owner].read(100)):
            assert self.owners[owner].is_current(answer.slot, answer.generation)
            generation, image = self.waiting.pop(answer.slot)
            assert answer.generation == generation
            if answer.status == Status.OK:
                assert answer.prediction.indices == (image,)
            assert image not in self.answered, "an image was answered twice"
            self.answered.add(image)
            self.owners[owner].release(answer.slot)
            assert not self.owners[owner].is_current(answer.slot, answer.generation), "a duplicate would count"

    @invariant()
    def no_slot_is_lost(self) -> None:
        free = sum(slots.free_count for slots in self.owners)
        assert free + len(self.decoding) + len(self.waiting) == len(self.table)
        counts = self.table.count_by_state()
        assert counts[SlotState.FREE] == free
        assert counts[SlotState.DECODING] == len(self.decoding)
        assert counts[SlotState.RUNNING] + counts[SlotState.QUEUED] == len(self.waiting)
        assert self.table.count_incoming() == counts[SlotState.DECODING] + counts[SlotState.QUEUED]


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def test_an_unreferenced_table_is_freed() -> None:
    """Its descriptors are closed, while an array that is still referenced stays valid."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = SlotTable(1, 4, (1, 1, 3)).pixels
    for _ in range(100):
        SlotTable(1, 4, (1, 1, 3))
    gc.collect()
    kept[:] = 7
    assert kept.sum() == 4 * 3 * 7
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
