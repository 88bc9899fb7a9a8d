"""Shadow traffic: a mirror, which is another version of a model, computes what a version has answered.

Knows nothing of HTTP, nor of what is done with the mirror's answers.

Theory of operation
-------------------
When a worker has answered an image, its slot is released, and the mirror takes the same slot at once: so it has the
same pixels, and nothing was copied. There they are kept until the answer was sent, see `Mirror.send`; only then are
they queued for the mirror's workers.

A mirror may not cost a client anything. It gets an image only while more than half of the slots of the HTTP process are
free, and no more of them at once than half of those that no other version may take; its images are of low urgency, so
clients that ask for the mirror by its name come first. Once fewer slots are free, what it has is given up: what is kept
is freed, and what is queued is abandoned. Its workers' failures have no one to reach. One that fails on every image
gets few: what it has is lost work on cores that the version which answers needs.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import NamedTuple

from vit_api.errors import DeadlineExceeded, ViTError
from vit_api.ipc.records import AnswerRecord
from vit_api.ipc.slots import OwnerSlots
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.urgency import Urgency
from vit_api.web.core.caller import Caller
from vit_api.web.core.inference import InferenceClient

MAX_KEPT_S = 5.0
"""Time to send an answer: that of a request with many images, or of a client that left, may never be sent."""

MAX_FAILURES = 8
"""Images in a row on which a mirror may fail before it gets only one in `RETRY_S`."""
RETRY_S = 1.0

_CALLER = Caller("mirror", Urgency.LOW)


class _Kept(NamedTuple):
    """An image whose answer was not sent yet: its slot, the generation there, and when it was kept."""

    slot: int
    generation: int
    kept_at: float


class Mirror:
    """Have one version of a model compute what others have answered. For one HTTP process, on its event loop.

    Args:
        inference: The way to the mirror's workers.
        slots: This process's slots, as the mirror sees them.
        worker_board: The status of the mirror's workers.
        share: Part of the images that it gets, from 0 to 1; may be changed.
        timeout_s: Seconds that its workers have for an image.
        skip: Called for each of these images that it does not get after all.
        draw: Returns a random number from 0 to 1, without 1.

    Attributes:
        share: See above.
    """

    def __init__(
        self,
        inference: InferenceClient,
        slots: OwnerSlots,
        worker_board: WorkerBoard,
        *,
        share: float,
        timeout_s: float,
        skip: Callable[[], None],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._inference = inference
        self._slots = slots
        self._max_images = slots.max_mirrored
        self._worker_board = worker_board
        self.share = share
        self._timeout_s = timeout_s
        self._skip = skip
        self._draw = draw
        self._kept: dict[tuple[int, int], _Kept] = {}  # by the slot and generation of the answer
        self._sent: dict[asyncio.Future[AnswerRecord], int] = {}  # what its workers have, with its slot
        self._timer: asyncio.TimerHandle | None = None
        self._failures = 0  # since the last answer
        self._taken_at = 0.0

    def keep(self, slot: int, generation: int) -> None:
        """Take the pixels of an image that a version has answered, if it is drawn and they cost no client anything.

        Args:
            slot: Its slot, which was released just now.
            generation: That of the answer.
        """
        if self._draw() >= self.share:
            return
        if not self._slots.is_mostly_free:
            self.give_up()
            self._skip()
            return
        now = time.monotonic()
        taken = self._slots.take_again(slot, now + self._timeout_s) if self._takes_images(now) else None
        if taken is None:
            self._skip()
            return
        self._taken_at = now
        self._slots.mirrored += 1
        self._kept[slot, generation] = _Kept(slot, taken, now)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(MAX_KEPT_S, self._drop_old)

    @property
    def has_kept(self) -> bool:
        """Whether any image is kept, so that one may be sent."""
        return bool(self._kept)

    def send(self, answer: AnswerRecord) -> asyncio.Future[AnswerRecord] | None:
        """Have the mirror compute the image of an answer that was sent.

        Returns:
            The mirror's answer or its error; None if the image is not kept.
        """
        kept = self._kept.pop((answer.slot, answer.generation), None)
        if kept is None:
            return None
        answered = self._inference.infer_again(kept.slot, kept.generation, _CALLER)
        self._sent[answered] = kept.slot
        answered.add_done_callback(self._forget)
        return answered

    def drop(self, answer: AnswerRecord) -> None:
        """Do not compute the image of an answer, if it is kept."""
        kept = self._kept.pop((answer.slot, answer.generation), None)
        if kept is not None:
            self._release(kept)

    def give_up(self) -> None:
        """Free the slots of what is kept at once, and of what is queued as soon as a worker comes to it."""
        while self._kept:
            self._release(self._kept.popitem()[1])
        while self._sent:
            answered, slot = self._sent.popitem()
            if not answered.done():  # if it is, the slot may hold another image by now
                self._slots.abandon(slot)

    def stop(self) -> None:
        """Stop the timer, and what is kept or computed."""
        self.give_up()
        if self._timer is not None:
            self._timer.cancel()

    def _takes_images(self, now: float) -> bool:
        """Return whether it may have another image, and its workers are there and did not just fail again and again."""
        if self._slots.mirrored >= self._max_images or not self._worker_board.takes_images():
            return False
        return self._failures < MAX_FAILURES or now - self._taken_at >= RETRY_S

    def _forget(self, answered: asyncio.Future[AnswerRecord]) -> None:
        self._slots.mirrored -= 1
        self._sent.pop(answered, None)
        if answered.cancelled():
            return
        error = answered.exception()
        if error is None:
            self._failures = 0
        elif not isinstance(error, DeadlineExceeded):
            self._failures += 1

    def _release(self, kept: _Kept) -> None:
        self._slots.release(kept.slot)
        self._slots.mirrored -= 1
        self._skip()

    def _drop_old(self) -> None:
        """Drop what was kept for too long; look again when the oldest of the others will have been."""
        self._timer = None
        now = time.monotonic()
        for key, kept in list(self._kept.items()):
            left_s = kept.kept_at + MAX_KEPT_S - now
            if left_s > 0:
                self._timer = asyncio.get_running_loop().call_later(left_s, self._drop_old)
                return
            del self._kept[key]
            self._release(kept)


class MirroredInference(InferenceClient):
    """The way to the workers of a version that may have a mirror.

    Attributes:
        mirror: Gets what the workers have answered; None if there is none.
    """

    mirror: Mirror | None = None

    def _complete(self, slot: int, outcome: AnswerRecord | ViTError) -> None:
        job = self._jobs.get(slot)
        is_wanted = job is not None and not job.waiter.done()
        super()._complete(slot, outcome)
        if is_wanted and self.mirror is not None and isinstance(outcome, AnswerRecord):
            self.mirror.keep(slot, outcome.generation)
