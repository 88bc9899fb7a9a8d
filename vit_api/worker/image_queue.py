"""The images that wait for a worker: claims them for its batches, the urgent ones first.

Knows nothing of models, and of batches only which images are in them.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from vit_api.ipc.metrics_board import Counter
from vit_api.ipc.records import AnswerRecord, RecordPipe, RequestRecord, Status, unpack_requests
from vit_api.ipc.slots import Claim, SlotTable, WorkerSlots
from vit_api.urgency import Urgency
from vit_api.worker.urgency_mix import UrgencyMix


class ImageQueue:
    """Claim queued images. For one worker.

    Args:
        table: All slots.
        slots: The slots as this worker sees them.
        requests: Carry the records of queued slots, by urgency.
        max_batch_size: Maximum number of images in a batch.
        answer: Sends answers for images that no caller waits for any more.
        expired: Count those whose deadline had passed, by urgency.
        abandoned: Count those that their callers had left, by urgency.

    Attributes:
        mix: Decides how many images of low urgency a batch takes.
        has_isolated: Whether an image waits for a batch of its own.
    """

    def __init__(
        self,
        table: SlotTable,
        slots: WorkerSlots,
        requests: Sequence[RecordPipe],
        max_batch_size: int,
        *,
        answer: Callable[[Iterable[AnswerRecord]], None],
        expired: Sequence[Counter],
        abandoned: Sequence[Counter],
    ) -> None:
        self.mix = UrgencyMix(max_batch_size)
        self._table = table
        self._slots = slots
        self._requests = requests
        self._max_batch_size = max_batch_size
        self._answer = answer
        self._expired = expired
        self._abandoned = abandoned
        self._isolated: deque[RequestRecord] = deque()
        self._has_low_records = False

    @property
    def has_isolated(self) -> bool:
        """Whether an image waits that must be a batch of its own."""
        return bool(self._isolated)

    def count_candidates(self) -> tuple[int, int]:
        """Return how many of the images that wait now would join a batch, and how many others may join it later."""
        table = self._table
        if not table.has_low():
            waiting = table.count_waiting()
            return waiting, max(0, table.count_incoming() - waiting)
        normal, low = table.count_waiting(Urgency.NORMAL), table.count_waiting(Urgency.LOW)
        room = self.mix.low_room(normal, 0, time.monotonic())
        joining = normal + int(min(low, room))
        if normal or low >= room:
            return joining, max(0, table.count_incoming(Urgency.NORMAL) - normal)
        return joining, max(0, table.count_incoming() - low)

    def count_incoming(self, batch: Sequence[Claim]) -> int:
        """Return how many images a batch may wait for: only of normal urgency, if it has one or no room for others."""
        low = _count_low(batch)
        if self._table.has_low() and (low < len(batch) or self.mix.low_room(0, low, time.monotonic()) < 1):
            return self._table.count_incoming(Urgency.NORMAL)
        return self._table.count_incoming()

    def wait(self, batch: Sequence[Claim], timeout_s: float) -> None:
        """Wait until an image is queued that may join a batch, or the time is up."""
        low = _count_low(batch)
        # A pipe that must not be read now would be ready all the time.
        takes_low = self.mix.low_room(len(batch) - low, low, time.monotonic()) >= 1
        pipes = self._requests if takes_low else self._requests[: Urgency.LOW]
        ready, _, _ = select.select(pipes, [], [], timeout_s)
        self._has_low_records = self._requests[Urgency.LOW] in ready

    def claim(self, batch: Sequence[Claim] = ()) -> list[Claim]:
        """Claim queued images that join a batch, as many as fit; answer those that no caller waits for any more."""
        room = self._max_batch_size - len(batch)
        # Records without an image are rare: they are of a worker that died, and must not stay in the pipe.
        if not self._table.has_low() and not self._has_low_records:
            claims = self._claim_from(Urgency.NORMAL, room)
            self.mix.count_normal(len(claims), time.monotonic())
            return claims
        self._has_low_records = False
        due = self._claim_from(Urgency.LOW, min(room, self.mix.due()))
        normal = self._claim_from(Urgency.NORMAL, room - len(due))
        now = time.monotonic()
        self.mix.count_normal(len(normal), now)
        low = _count_low(batch)
        low_room = self.mix.low_room(len(batch) - low + len(normal), low + len(due), now)
        more = self._claim_from(Urgency.LOW, int(min(room - len(due) - len(normal), low_room)))
        self.mix.count_share(len(normal), len(due) + len(more))
        return [*normal, *due, *more]

    def claim_isolated(self) -> list[Claim]:
        """Claim one of the isolated images, if there is one.

        They are not claimed earlier, since every image that a worker holds when it dies is suspect.
        """
        claims: list[Claim] = []
        while self._isolated and not claims:
            claims = self._claim([self._isolated.popleft()])
        return claims

    def without_unwanted(self, batch: list[Claim]) -> list[Claim]:
        """Return a claimed batch without the images that no caller waits for any more, which are answered."""
        now = time.monotonic()
        unwanted = [claim for claim in batch if not self._slots.is_wanted(claim.slot, now)]
        if not unwanted:
            return batch
        for claim in unwanted:
            self._slots.finish(claim.slot)
        self._skip(unwanted)
        return [claim for claim in batch if claim not in unwanted]

    def _claim_from(self, urgency: Urgency, max_images: int) -> list[Claim]:
        """Claim up to `max_images` queued images of one urgency."""
        claims: list[Claim] = []
        while (missing := max_images - len(claims)) > 0:
            requests = list(unpack_requests(self._requests[urgency].read(missing)))
            claims += self._claim(self._without_isolated(requests))
            if len(requests) < missing:
                break
        return claims

    def _without_isolated(self, requests: Iterable[RequestRecord]) -> list[RequestRecord]:
        """Return those that may share a batch; keep the others for batches of their own."""
        others: list[RequestRecord] = []
        for request in requests:
            (self._isolated if self._table.is_isolated(request.slot) else others).append(request)
        return others

    def _claim(self, requests: Iterable[RequestRecord]) -> list[Claim]:
        now = time.monotonic()
        claims = (self._slots.claim(slot, generation, now) for slot, generation in requests)
        current = [claim for claim in claims if claim is not None]
        wanted = [claim for claim in current if claim.is_wanted]
        if len(wanted) < len(current):
            self._skip([claim for claim in current if not claim.is_wanted])
        return wanted

    def _skip(self, claims: Sequence[Claim]) -> None:
        """Answer images that no caller waits for any more."""
        for claim in claims:
            counters = self._abandoned if self._slots.is_abandoned(claim.slot) else self._expired
            counters[claim.urgency].add()
        self._answer(AnswerRecord(claim.slot, claim.generation, Status.SKIPPED) for claim in claims)


def _count_low(batch: Sequence[Claim]) -> int:
    return sum(claim.urgency for claim in batch)
