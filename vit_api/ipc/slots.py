"""The slot table: pixels in shared memory, and who may touch them when.

Knows nothing of HTTP, models or pipes. It is also the server's bounded queue: no free slot means overload.

Theory of operation
-------------------
An image occupies one slot from its decoding to its answer. Each HTTP process owns a fixed range of slots, so taking
one needs no lock. The owner writes a slot's fields until it queues the slot; the worker that claims it may then read
the pixels until it has sent its answer; with the answer the slot is the owner's again. `TRANSITIONS` is the whole
state machine:

    FREE ── take ──▶ DECODING ── queue ──▶ QUEUED ── claim ──▶ RUNNING ── finish ──▶ ANSWERED
      ▲                 │                     │   ▲               │                     │
      │                 │                     │   └── requeue ────┴──(its worker died)──┤
      └──── release ────┴────── release ──────┴─────────────────── release ─────────────┘
                 (decoding failed)    (skipped: abandoned)

A client that leaves or a deadline that passes marks the slot abandoned; this flag and the deadline are the owner's at
all times. The worker skips an abandoned slot, and only the worker's answer frees a slot that was queued, so none is
taken again while a worker can still read it. `generation` grows with each use: a record of an earlier use matches
nothing.

When a worker dies, the main process tells the owners which slots it held, and writes the records of all queued slots
again, since one may have been read and not yet claimed; see `recovery`. When an HTTP process dies, its successor takes
its slots over: what no worker can read is free at once, the rest when its answer comes. ANSWERED tells the two apart,
since the dead process may have read the answer already.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_api.ipc.shared_memory import Layout, SharedArrays


class SlotState(enum.IntEnum):
    """Where the image in a slot is on its way."""

    FREE = 0
    DECODING = 1
    QUEUED = 2
    RUNNING = 3
    ANSWERED = 4


TRANSITIONS: dict[SlotState, frozenset[SlotState]] = {
    SlotState.FREE: frozenset({SlotState.DECODING}),
    SlotState.DECODING: frozenset({SlotState.QUEUED, SlotState.FREE}),
    SlotState.QUEUED: frozenset({SlotState.RUNNING, SlotState.FREE}),
    SlotState.RUNNING: frozenset({SlotState.ANSWERED, SlotState.FREE, SlotState.QUEUED}),
    SlotState.ANSWERED: frozenset({SlotState.FREE, SlotState.QUEUED}),
}

MAX_DEATHS = 2
"""Of workers that held an image in a batch, before it is tried alone, for the last time."""

_MAX_GENERATION = 2**32 - 1


class InvalidTransitionError(Exception):
    """A slot was moved in a way that `TRANSITIONS` doesn't have: a bug, never a client's doing."""


class Claim(NamedTuple):
    """A slot that a worker took from the queue.

    Attributes:
        slot: The slot's number.
        generation: Which use of the slot it is.
        queued_at: When it was queued, in seconds of the monotonic clock.
        is_wanted: False if its client left or its deadline passed: answer it without running it.
    """

    slot: int
    generation: int
    queued_at: float
    is_wanted: bool


class SlotTable:
    """All slots of the server.

    Args:
        owners: HTTP processes; each owns `slots_per_owner` slots.
        slots_per_owner: Images that one HTTP process can hold at once.
        pixel_shape: (height, width, 3) of one image as uint8.

    Attributes:
        pixels: uint8 [slots, height, width, 3].
    """

    def __init__(self, owners: int, slots_per_owner: int, pixel_shape: tuple[int, int, int]) -> None:
        slots = owners * slots_per_owner
        layout: Layout = {
            "states": (np.uint8, (slots,)),
            "abandoned": (np.uint8, (slots,)),
            "isolated": (np.uint8, (slots,)),
            "generations": (np.uint32, (slots,)),
            "workers": (np.int32, (slots,)),
            "queued_at": (np.float64, (slots,)),
            "deadlines": (np.float64, (slots,)),
            "pixels": (np.uint8, (slots, *pixel_shape)),
        }
        self._bind(SharedArrays(layout), slots_per_owner)

    def _bind(self, shared: SharedArrays, slots_per_owner: int) -> None:
        self._shared = shared
        self.slots_per_owner = slots_per_owner
        self.pixels: NDArray[np.uint8] = shared["pixels"]
        self._states = shared["states"]
        self._state = shared.view("states")
        self._abandoned = shared.view("abandoned")
        self._isolated = shared.view("isolated")
        self._generation = shared.view("generations")
        self._worker = shared.view("workers")
        self._queued_at = shared.view("queued_at")
        self._deadline = shared.view("deadlines")

    def __getstate__(self) -> dict[str, Any]:
        return {"shared": self._shared, "slots_per_owner": self.slots_per_owner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._bind(state["shared"], state["slots_per_owner"])

    def __len__(self) -> int:
        return len(self._states)

    def owner_of(self, slot: int) -> int:
        """Return the number of the HTTP process that owns `slot`."""
        return slot // self.slots_per_owner

    def state_of(self, slot: int) -> SlotState:
        """Return the state that `slot` is in now."""
        return SlotState(self._state[slot])

    def count_coming(self) -> int:
        """Count the images that may join a batch: being decoded, or queued, not yet claimed and not to be alone."""
        coming = (self._states == SlotState.DECODING) | (self._states == SlotState.QUEUED)
        coming &= self._shared["isolated"] == 0
        return int(np.count_nonzero(coming))

    def count_waiting(self) -> int:
        """Count the images that may join a batch now: queued, not yet claimed and not to be alone."""
        return int(np.count_nonzero((self._states == SlotState.QUEUED) & (self._shared["isolated"] == 0)))

    def count_by_state(self) -> dict[SlotState, int]:
        """Count the slots in each state."""
        counts = np.bincount(self._states, minlength=len(SlotState))
        return {state: int(counts[state]) for state in SlotState}

    def _move(self, slot: int, to: SlotState) -> None:
        if to not in TRANSITIONS[self._state[slot]]:
            raise InvalidTransitionError(f"slot {slot} can't go from {self.state_of(slot).name} to {to.name}")
        self._state[slot] = to

    def start_decoding(self, slot: int, deadline: float) -> int:
        """Take the free `slot` for a new image and return its new generation. For the owner."""
        self._move(slot, SlotState.DECODING)
        self._abandoned[slot] = 0
        self._isolated[slot] = 0
        self._deadline[slot] = deadline
        generation: int = self._generation[slot] % _MAX_GENERATION + 1
        self._generation[slot] = generation
        return generation

    def queue(self, slot: int, now: float) -> None:
        """Hand `slot`, whose pixels are written, to the workers. For the owner; the request's record comes after."""
        self._queued_at[slot] = now
        self._move(slot, SlotState.QUEUED)

    def requeue(self, slot: int, *, isolated: bool) -> None:
        """Hand `slot`, whose worker died, to the workers again; its place in the queue is the old one. For the owner.

        Args:
            slot: The slot.
            isolated: Whether it is to be a batch of its own, since it may be what the worker died of.
        """
        self._isolated[slot] = isolated
        self._move(slot, SlotState.QUEUED)

    def is_isolated(self, slot: int) -> bool:
        """Tell whether `slot` is to be a batch of its own."""
        return bool(self._isolated[slot])

    def extend(self, slot: int, deadline: float) -> None:
        """Let the image in `slot` be wanted until `deadline`, whatever its state. For the owner."""
        self._deadline[slot] = deadline

    def abandon(self, slot: int) -> None:
        """Mark `slot` as no longer wanted, whatever its state. For the owner."""
        self._abandoned[slot] = 1

    def is_abandoned(self, slot: int) -> bool:
        """Tell whether the owner marked `slot` as no longer wanted."""
        return bool(self._abandoned[slot])

    def release(self, slot: int) -> None:
        """Make `slot` free. For the owner, once no worker can read it any more."""
        self._move(slot, SlotState.FREE)

    def claim(self, slot: int, generation: int, worker: int, now: float) -> Claim | None:
        """Take `slot` from the queue for `worker`; None if the record is stale. For the worker that read the record."""
        if self._generation[slot] != generation or self._state[slot] != SlotState.QUEUED:
            return None
        is_wanted = not self._abandoned[slot] and now < self._deadline[slot]
        if is_wanted:
            self._worker[slot] = worker
            self._move(slot, SlotState.RUNNING)
        return Claim(slot, generation, self._queued_at[slot], is_wanted)

    def held_by(self, worker: int) -> list[tuple[int, int]]:
        """Return slot and generation of what `worker` was running. For the main process, once that worker is dead."""
        generations = self._shared["generations"].copy()  # first: what an owner retakes meanwhile is not meant
        held = (self._states == SlotState.RUNNING) | (self._states == SlotState.ANSWERED)
        return _pairs(np.flatnonzero(held & (self._shared["workers"] == worker)), generations)

    def queued(self) -> list[tuple[int, int]]:
        """Return slot and generation of what waits for a worker, the oldest first."""
        generations = self._shared["generations"].copy()
        slots = np.flatnonzero(self._states == SlotState.QUEUED)
        return _pairs(slots[np.argsort(self._shared["queued_at"][slots], kind="stable")], generations)

    def with_workers(self) -> list[tuple[int, int]]:
        """Return slot and generation of all that waits for a worker or is run by one."""
        generations = self._shared["generations"].copy()
        return _pairs(np.flatnonzero(self._states >= SlotState.QUEUED), generations)

    def finish(self, slot: int) -> None:
        """Note that `slot` is not read any more. For its worker, before the answer."""
        self._move(slot, SlotState.ANSWERED)

    def is_current(self, slot: int, generation: int) -> bool:
        """Tell whether an answer for `generation` belongs to the slot's present use. For the owner."""
        is_same_use: bool = self._generation[slot] == generation and self._state[slot] >= SlotState.QUEUED
        return is_same_use

    def is_held(self, slot: int) -> bool:
        """Tell whether a worker claimed `slot` and the owner has not heard of it yet. For the owner."""
        return self.state_of(slot) in (SlotState.RUNNING, SlotState.ANSWERED)


def _pairs(slots: NDArray[np.intp], generations: NDArray[np.uint32]) -> list[tuple[int, int]]:
    return [(int(slot), int(generations[slot])) for slot in slots]


class SlotRange:
    """The slots of one HTTP process, and which of them are free. For that process's event loop alone.

    If another process of this number died before, what it held is taken over: nobody waits for that any more.
    """

    def __init__(self, table: SlotTable, owner: int) -> None:
        self.table = table
        first = owner * table.slots_per_owner
        for slot in range(first, first + table.slots_per_owner):
            table.abandon(slot)
            if table.state_of(slot) in (SlotState.DECODING, SlotState.ANSWERED):
                table.release(slot)
        # A stack: the slot that was used last is warm in the processor's cache, and unused ones never take memory.
        slots = range(first + table.slots_per_owner - 1, first - 1, -1)
        self._free = [slot for slot in slots if table.state_of(slot) == SlotState.FREE]

    @property
    def free_count(self) -> int:
        """Slots that can be taken now."""
        return len(self._free)

    def take(self, deadline: float) -> tuple[int, int] | None:
        """Take a slot for a new image.

        Args:
            deadline: When the answer must be there, in seconds of the monotonic clock.

        Returns:
            The slot and its generation, or None if all are taken.
        """
        if not self._free:
            return None
        slot = self._free.pop()
        return slot, self.table.start_decoding(slot, deadline)

    def release(self, slot: int) -> None:
        """Give `slot` back."""
        self.table.release(slot)
        self._free.append(slot)
