"""The slot table: images in shared memory, and which process may access each of them when.

It is also the server's bounded queue: no free slot means overload. Knows nothing of HTTP, models or pipes.

Theory of operation
-------------------
An image occupies one slot from its decoding to its answer. Each HTTP process owns a fixed range of slots, so taking
one needs no lock. The owner writes a slot's pixels and queues it; the worker that claims the slot may read it until it
has finished; from then on the slot is the owner's again. This is the whole state machine, `TRANSITIONS`:

    from      step     by      to
    FREE      take     owner   DECODING
    DECODING  queue    owner   QUEUED
    DECODING  release  owner   FREE      decoding failed, or the image was abandoned
    QUEUED    claim    worker  RUNNING
    QUEUED    release  owner   FREE      a worker answered that it skipped an abandoned slot
    RUNNING   finish   worker  ANSWERED
    RUNNING   requeue  owner   QUEUED    its worker died
    RUNNING   release  owner   FREE      its worker died, and it is not tried again
    ANSWERED  release  owner   FREE
    ANSWERED  requeue  owner   QUEUED    its worker died between finishing and answering

The type determines the writer: an HTTP process writes through `OwnerSlots`, a worker through `WorkerSlots`. `SlotTable`
itself only reads.

When the last caller that waits for an image leaves or times out, the owner marks the slot abandoned, in any state. A
slot also has the deadline of that caller, which holds even while its owner is too busy to mark the slot. A worker skips
an abandoned or expired slot, and only the worker's answer frees a slot that was queued, so no slot is taken again while
a worker can still read it. `generation` grows with each use, so a record of an earlier use matches nothing.

When a worker dies, the main process tells the owners which slots it held, and writes the records of all queued slots
again, since one may have been read and not yet claimed; see `processes.recovery`. When an HTTP process dies, its
successor takes over its slots: those that no worker can read are free at once, the others when their answers arrive.
ANSWERED tells the two apart, since the dead process may have read the answer already.

An answer that does not fit in a record, such as one of all classes, is written by the worker into memory of the slot
for long answers: before it finishes the slot, so that no successor of a dead owner can take the slot meanwhile, and
the record with its length comes after. The owner copies it before it releases the slot. This memory is not that of the
pixels: if the worker dies between the two, the slot is queued again, and its pixels must be intact.

Images of low urgency may take only a part of an owner's slots, so that they never fill the queue for the others.

A mirror, which is a deployment that computes what another one has answered, gets the pixels where they are: the slot
that was released last is the next to be taken, and until then no process writes its pixels. See
`OwnerSlots.take_again`.

A server with several deployments, which are versions of models, has one table for all of them, whose slots hold the
largest input. Each slot says whose image is in it. `SlotTable.of_deployment` is the table as one deployment's processes
see it: it counts, finds and recovers that one's images only. An owner's deployments share its free slots, see
`deployment_shares`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_api.ipc.deployment_shares import DeploymentShares
from vit_api.ipc.shared_memory import Layout, SharedArrays
from vit_api.urgency import Urgency


class SlotState(enum.IntEnum):
    """What the image in a slot waits for."""

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
"""Workers that may die with an image in a batch before the image is retried once more, isolated."""

LOW_SHARE = 0.25
"""Part of an HTTP process's slots that images of low urgency may take."""

_MAX_GENERATION = 2**32 - 1
_URGENCIES = tuple(Urgency)  # an enum's constructor takes ten times as long as an index


class InvalidTransitionError(Exception):
    """A slot was moved in a way that `TRANSITIONS` doesn't allow: a bug of the server, never of a client."""


class Claim(NamedTuple):
    """A slot that a worker took from the queue.

    Attributes:
        slot: The slot's number.
        generation: Which use of the slot this is.
        queued_at: When it was queued, in seconds of the monotonic clock.
        is_wanted: False if the slot was abandoned or has expired: answer it without running it.
        urgency: How urgent its image is.
        parts: What its answer must have besides the most probable classes, see `records.ALL_CLASSES`.
    """

    slot: int
    generation: int
    queued_at: float
    is_wanted: bool
    urgency: Urgency = Urgency.NORMAL
    parts: int = 0


class SlotTable:
    """All slots of the server, read-only; `OwnerSlots` and `WorkerSlots` write.

    Args:
        owners: Number of HTTP processes; each owns `slots_per_owner` slots.
        slots_per_owner: Images that one HTTP process can hold at once.
        pixel_shape: (height, width, 3) of one image as uint8.
        long_bytes: Maximum size of a long answer.
        deployments: Number of deployments; with several, `pixel_shape` is that with the most pixels.

    Attributes:
        pixels: uint8 [slots, height, width, 3].
        long_answers: uint8 [slots, long_bytes].
        deployments: See above.
    """

    def __init__(
        self,
        owners: int,
        slots_per_owner: int,
        pixel_shape: tuple[int, int, int],
        long_bytes: int = 0,
        *,
        deployments: int = 1,
    ) -> None:
        slots = owners * slots_per_owner
        layout: Layout = {
            "states": (np.uint8, (slots,)),
            "abandoned": (np.uint8, (slots,)),
            "isolated": (np.uint8, (slots,)),
            "urgencies": (np.uint8, (slots,)),
            "parts": (np.uint8, (slots,)),
            "deployments": (np.uint8, (slots,)),
            "low_counts": (np.uint32, (deployments * owners,)),
            "deadlines": (np.float64, (slots,)),
            "generations": (np.uint32, (slots,)),
            "workers": (np.int32, (slots,)),
            "queued_at": (np.float64, (slots,)),
            "long_answers": (np.uint8, (slots, long_bytes)),
            "pixels": (np.uint8, (slots, *pixel_shape)),
        }
        self._bind(SharedArrays(layout), slots_per_owner, deployments)

    def _bind(
        self,
        shared: SharedArrays,
        slots_per_owner: int,
        deployments: int,
        number: int | None = None,
        pixel_shape: tuple[int, int, int] | None = None,
    ) -> None:
        self._shared = shared
        self.slots_per_owner = slots_per_owner
        self.deployments = deployments
        self._number = number
        self._pixel_shape = pixel_shape
        self.pixels: NDArray[np.uint8] = shared["pixels"]
        if pixel_shape is not None:
            flat = self.pixels.reshape(len(self.pixels), -1)[:, : math.prod(pixel_shape)]
            self.pixels = flat.reshape(-1, *pixel_shape)
        self.long_answers: NDArray[np.uint8] = shared["long_answers"]
        self._states = shared["states"]
        self._isolated = shared["isolated"]
        self._urgencies = shared["urgencies"]
        self._deployment_of = shared["deployments"]
        self._state = shared.view("states")
        self._low_counts = shared.view("low_counts")
        if number is not None:
            owners = len(self._low_counts) // deployments
            self._low_counts = self._low_counts[number * owners : (number + 1) * owners]

    def __getstate__(self) -> dict[str, Any]:
        names = ("shared", "slots_per_owner", "deployments", "number", "pixel_shape")
        values = (self._shared, self.slots_per_owner, self.deployments, self._number, self._pixel_shape)
        return dict(zip(names, values, strict=True))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._bind(**state)

    def of_deployment(self, number: int, pixel_shape: tuple[int, int, int]) -> SlotTable:
        """Return the table as the processes of one deployment see it.

        Args:
            number: The deployment's number.
            pixel_shape: (height, width, 3) of its images, which take a part of each slot's memory.
        """
        table = SlotTable.__new__(SlotTable)
        table._bind(self._shared, self.slots_per_owner, self.deployments, number, pixel_shape)
        return table

    def _own(self, selected: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which of the selected slots are of this deployment."""
        return selected if self._number is None else selected & (self._deployment_of == self._number)

    def __len__(self) -> int:
        return len(self._states)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one slot for the pixels of an image."""
        return int(np.prod(self._shared["pixels"].shape[1:]))

    @property
    def long_bytes(self) -> int:
        """Bytes of one slot for a long answer."""
        return int(self.long_answers.shape[1])

    def is_empty(self) -> bool:
        """Return whether no slot has an image, of this deployment if the table is that of one."""
        return not self._own(self._states != SlotState.FREE).any()

    def owner_of(self, slot: int) -> int:
        """Return the number of the HTTP process that owns `slot`."""
        return slot // self.slots_per_owner

    def state_of(self, slot: int) -> SlotState:
        """Return the current state of `slot`."""
        return SlotState(self._state[slot])

    def is_isolated(self, slot: int) -> bool:
        """Return whether `slot` must run in a batch alone."""
        return bool(self._isolated[slot])

    def has_low(self) -> bool:
        """Return whether an image of low urgency is anywhere between its decoding and its answer."""
        return any(self._low_counts)

    def count_incoming(self, urgency: Urgency | None = None) -> int:
        """Count the images that may join a batch: being decoded or queued, neither claimed nor isolated.

        Args:
            urgency: Which to count; None counts all.
        """
        incoming = (self._states == SlotState.DECODING) | (self._states == SlotState.QUEUED)
        return self._count(incoming, urgency)

    def count_decoding(self) -> int:
        """Count the images of all deployments that are being decoded, or wait for that."""
        return int(np.count_nonzero(self._states == SlotState.DECODING))

    def count_waiting(self, urgency: Urgency | None = None) -> int:
        """Count the images that may join a batch now: queued, neither claimed nor isolated.

        Args:
            urgency: Which to count; None counts all.
        """
        return self._count(self._states == SlotState.QUEUED, urgency)

    def _count(self, selected: NDArray[np.bool_], urgency: Urgency | None) -> int:
        selected = self._own(selected & (self._isolated == 0))
        return int(np.count_nonzero(selected if urgency is None else selected & (self._urgencies == urgency)))

    def oldest_waiting_at(self) -> float:
        """Return when the oldest image was queued that may join a batch now; infinity if there is none."""
        waiting = self._own((self._states == SlotState.QUEUED) & (self._isolated == 0))
        return float(self._shared["queued_at"].min(where=waiting, initial=np.inf))

    def count_by_state(self) -> dict[SlotState, int]:
        """Count the slots in each state, those of all deployments."""
        counts = np.bincount(self._states, minlength=len(SlotState))
        return {state: int(counts[state]) for state in SlotState}

    def held_by(self, worker: int) -> list[tuple[int, int]]:
        """Return slot and generation of what `worker` was running. For the main process, once that worker is dead."""
        generations = self._shared["generations"].copy()  # first, so that a slot retaken meanwhile doesn't match
        held = (self._states == SlotState.RUNNING) | (self._states == SlotState.ANSWERED)
        return _pairs(np.flatnonzero(self._own(held & (self._shared["workers"] == worker))), generations)

    def queued(self) -> list[tuple[int, int]]:
        """Return slot and generation of each queued image, oldest first."""
        generations = self._shared["generations"].copy()
        slots = np.flatnonzero(self._own(self._states == SlotState.QUEUED))
        return _pairs(slots[np.argsort(self._shared["queued_at"][slots], kind="stable")], generations)

    def urgency_of(self, slot: int) -> Urgency:
        """Return how urgent the image in `slot` is."""
        return Urgency(self._urgencies[slot])

    def with_workers(self) -> list[tuple[int, int]]:
        """Return slot and generation of everything that waits for a worker or is run by one."""
        generations = self._shared["generations"].copy()
        return _pairs(np.flatnonzero(self._own(self._states >= SlotState.QUEUED)), generations)


def _pairs(slots: NDArray[np.intp], generations: NDArray[np.uint32]) -> list[tuple[int, int]]:
    return [(int(slot), int(generations[slot])) for slot in slots]


class _Fields:
    """The fields of a table's slots, for the views that write them."""

    def __init__(self, table: SlotTable) -> None:
        shared = table._shared
        self.table = table
        self._state = shared.view("states")
        self._abandoned = shared.view("abandoned")
        self._isolated = shared.view("isolated")
        self._urgency = shared.view("urgencies")
        self._parts = shared.view("parts")
        self._deadline = shared.view("deadlines")
        self._generation = shared.view("generations")
        self._worker = shared.view("workers")
        self._queued_at = shared.view("queued_at")

    def _move(self, slot: int, to: SlotState) -> None:
        if to not in TRANSITIONS[self._state[slot]]:
            raise InvalidTransitionError(f"Slot {slot} can't go from {SlotState(self._state[slot]).name} to {to.name}.")
        self._state[slot] = to

    def is_abandoned(self, slot: int) -> bool:
        """Return whether `slot` was marked as no longer wanted."""
        return bool(self._abandoned[slot])

    def is_wanted(self, slot: int, now: float) -> bool:
        """Return whether a caller still waits for `slot`: it is not abandoned, and its deadline has not passed.

        Args:
            slot: The slot.
            now: The time, in seconds of the monotonic clock.
        """
        return not self._abandoned[slot] and now < self._deadline[slot]


class OwnerSlots(_Fields):
    """The slots of one HTTP process, which alone takes, queues and frees them.

    `take` and `release` are for that process's event loop; `queue` and `is_wanted` for its decoding threads, too.
    If another process of this number died before, its slots are taken over as abandoned.

    Args:
        table: All slots, as one deployment sees them if there are several.
        owner: The number of the HTTP process.
        sibling: The slots of the same process as another deployment sees them, which have been taken over.

    Attributes:
        mirrored: Number of images that the deployment has as a mirror, which are of low urgency, but take nothing from
            what other images of low urgency may have; counted by the caller that takes them.
    """

    def __init__(self, table: SlotTable, owner: int, sibling: OwnerSlots | None = None) -> None:
        super().__init__(table)
        self._owner = owner
        self._deployment = table._number or 0
        self._deployment_of = table._shared.view("deployments")
        self._low_counts = table._low_counts
        self._max_low = _max_low(table.slots_per_owner, table.deployments)
        self.mirrored = 0
        self._free: list[int] = []
        self._shares: DeploymentShares | None = None
        if sibling is not None:
            self._free, self._shares = sibling._free, sibling._shares
            return
        if table.deployments > 1:
            self._shares = DeploymentShares(table.slots_per_owner, table.deployments)
        self._take_over()

    def _take_over(self) -> None:
        """Find the free slots, and abandon the images of a predecessor, of any deployment."""
        first = self._owner * self.table.slots_per_owner
        # A stack: the slot that was used last is warm in the processor's cache, and unused ones never take memory.
        slots = range(first + self.table.slots_per_owner - 1, first - 1, -1)
        for slot in slots:
            self.abandon(slot)
            if self._state[slot] in (SlotState.DECODING, SlotState.ANSWERED):
                self._move(slot, SlotState.FREE)
        self._free = [slot for slot in slots if self._state[slot] == SlotState.FREE]
        held = [slot for slot in slots if self._state[slot] != SlotState.FREE]
        low_counts = self.table._shared["low_counts"].reshape(self.table.deployments, -1)
        low_counts[:, self._owner] = 0
        for slot in held:
            low_counts[self._deployment_of[slot], self._owner] += self._urgency[slot] == Urgency.LOW
            if self._shares is not None:
                self._shares.add(self._deployment_of[slot])

    def share_among(self, deployments: Sequence[int]) -> None:
        """Keep a share of the slots for the deployments with these numbers only.

        To be called on the slots of each deployment when one is added or removed.
        """
        if self._shares is not None:
            self._shares.keep_for(deployments)
            self._max_low = _max_low(self.table.slots_per_owner, len(deployments))

    @property
    def free_count(self) -> int:
        """Number of slots that can be taken now."""
        free = len(self._free)
        return free if self._shares is None else self._shares.free_for(self._deployment, free)

    def max_of(self, urgency: Urgency) -> int:
        """Return how many slots images of this urgency may take."""
        if urgency is Urgency.LOW:
            return self._max_low
        return self.table.slots_per_owner if self._shares is None else self._shares.maximum

    def take(
        self, deadline: float = math.inf, urgency: Urgency = Urgency.NORMAL, parts: int = 0
    ) -> tuple[int, int] | None:
        """Take a free slot for a new image; return it and its generation.

        Args:
            deadline: When its last caller stops waiting, in seconds of the monotonic clock.
            urgency: How urgent it is.
            parts: What its answer must have besides the most probable classes.

        Returns:
            None if all are taken, or all that images of this urgency may take.
        """
        if not self._free or (
            urgency is Urgency.LOW and self._low_counts[self._owner] - self.mirrored >= self._max_low
        ):
            return None
        if self._shares is not None:
            if self._shares.free_for(self._deployment, len(self._free)) <= 0:
                return None
            self._shares.add(self._deployment)
            self._deployment_of[self._free[-1]] = self._deployment
        slot = self._free.pop()
        self._move(slot, SlotState.DECODING)
        if urgency:
            self._low_counts[self._owner] += 1
        self._urgency[slot] = urgency
        self._parts[slot] = parts
        self._deadline[slot] = deadline
        self._abandoned[slot] = 0
        self._isolated[slot] = 0
        generation: int = self._generation[slot] % _MAX_GENERATION + 1
        self._generation[slot] = generation
        return slot, generation

    @property
    def max_mirrored(self) -> int:
        """The most images that the deployment may have as a mirror: half of what no other deployment may take."""
        return 0 if self._shares is None else max(1, self._shares.minimum // 2)

    @property
    def is_mostly_free(self) -> bool:
        """Whether more than half of the slots are free, those of all deployments."""
        return 2 * len(self._free) > self.table.slots_per_owner

    def take_again(self, slot: int, deadline: float) -> int | None:
        """Take `slot` with its pixels, which another deployment of this process has just released.

        Args:
            slot: The slot, of which nothing was taken since.
            deadline: When it is no longer worth computing, in seconds of the monotonic clock.

        Returns:
            Its generation; None if the deployment may take none now.
        """
        assert self._free[-1] == slot
        taken = self.take(deadline, Urgency.LOW)
        return None if taken is None else taken[1]

    def queue(self, slot: int, now: float) -> None:
        """Hand over `slot`, whose pixels are written, to the workers; its request record comes after.

        Args:
            slot: The slot.
            now: The time, in seconds of the monotonic clock.
        """
        self._queued_at[slot] = now
        self._move(slot, SlotState.QUEUED)

    def requeue(self, slot: int, *, isolated: bool) -> None:
        """Hand over `slot`, whose worker died, to the workers again. It keeps its place in the queue.

        Args:
            slot: The slot.
            isolated: Whether it must run in a batch alone, since it may be the cause of the death.
        """
        self._isolated[slot] = isolated
        self._move(slot, SlotState.QUEUED)

    def abandon(self, slot: int) -> None:
        """Mark `slot` as no longer wanted, whatever its state."""
        self._abandoned[slot] = 1

    def extend(self, slot: int, deadline: float) -> None:
        """Set a later deadline, of a caller that joined.

        Args:
            slot: The slot.
            deadline: In seconds of the monotonic clock.
        """
        self._deadline[slot] = deadline

    def is_current(self, slot: int, generation: int) -> bool:
        """Return whether an answer for `generation` belongs to the slot's present use."""
        is_same_use: bool = self._generation[slot] == generation and self._state[slot] >= SlotState.QUEUED
        return is_same_use

    def is_held(self, slot: int) -> bool:
        """Return whether a worker has claimed `slot` and its answer is still outstanding."""
        return self._state[slot] in (SlotState.RUNNING, SlotState.ANSWERED)

    def read_long(self, slot: int, size: int) -> bytes:
        """Return a copy of the long answer in `slot`, which is not released yet."""
        return self.table.long_answers[slot, :size].tobytes()

    def release(self, slot: int) -> None:
        """Free `slot`, once no worker can read it any more."""
        self._move(slot, SlotState.FREE)
        if self._urgency[slot]:
            self._low_counts[self._owner] -= 1
        if self._shares is not None:
            self._shares.remove(self._deployment)
        self._free.append(slot)


def _max_low(slots: int, deployments: int) -> int:
    """Return how many of an owner's slots images of low urgency of one deployment may take."""
    return max(1, int(slots * LOW_SHARE / deployments))


class WorkerSlots(_Fields):
    """The slots as one worker sees them: it claims queued ones, reads their pixels, and finishes them.

    Args:
        table: All slots.
        worker: The worker's number.
    """

    def __init__(self, table: SlotTable, worker: int) -> None:
        super().__init__(table)
        self._number = worker

    def claim(self, slot: int, generation: int, now: float = 0.0) -> Claim | None:
        """Take `slot` from the queue, unless no caller waits for it any more; return None if the record is stale.

        Args:
            slot: The slot that a request record names.
            generation: The use of the slot that the record names.
            now: The time, in seconds of the monotonic clock.
        """
        if self._generation[slot] != generation or self._state[slot] != SlotState.QUEUED:
            return None
        is_wanted = not self._abandoned[slot] and now < self._deadline[slot]  # as `is_wanted`, without the call
        if is_wanted:
            self._worker[slot] = self._number
            self._move(slot, SlotState.RUNNING)
        urgency = _URGENCIES[self._urgency[slot]]
        return Claim(slot, generation, self._queued_at[slot], is_wanted, urgency, self._parts[slot])

    def write_long(self, slot: int, answer: bytes) -> None:
        """Write the long answer of `slot`, which is not finished yet."""
        self.table.long_answers[slot, : len(answer)] = np.frombuffer(answer, np.uint8)

    def finish(self, slot: int) -> None:
        """Note that `slot` is not read any more, before its answer is sent."""
        self._move(slot, SlotState.ANSWERED)
