"""Requests of which every byte is known: they are answered by what is kept of an earlier one. Knows nothing of routes.

Two things make them cheap. Nothing of a known request is parsed: its bytes are compared. And what all of a turn of the
event loop have in common is done once a turn: each asks whether the server is draining, and counts, only at the first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from vit_api.web.door.application import KnownAnswer

MAX_BYTES = 4 * 2**20
"""Maximum size of all kept requests of a process together."""
MAX_REQUEST_BYTES = 128 * 2**10
KEPT_S = 60.0
"""All are dropped after so many seconds, so that an upload is not kept for long after its last use."""
SAMPLE_BYTES = 32


class LoopTurn:
    """A turn of the event loop: what its known requests have in common.

    Args:
        is_draining: Returns whether each answer is the last one of its connection.

    Attributes:
        number: Its number.
        last_ended_at: When the last known request of this turn was answered, which is when the next one is begun; 0.0
            before the first, and after work of another kind. Reading the clock may take longer than all else.
        answers: Those that have something to count.
    """

    __slots__ = ("_is_draining", "_is_open", "answers", "last_ended_at", "number")

    def __init__(self, is_draining: Callable[[], bool] = lambda: False) -> None:
        self._is_draining = is_draining
        self._is_open = False
        self.number = 0
        self.last_ended_at = 0.0
        self.answers: list[KnownAnswer] = []

    def begin(self, loop: asyncio.AbstractEventLoop) -> float:
        """Return the time, or 0.0 if no known request is to be answered in this turn."""
        if self._is_draining():
            return 0.0
        if not self._is_open:
            self._is_open = True
            self.number += 1
            loop.call_soon(self.end)
        return time.monotonic()

    def end(self) -> None:
        """Have everything counted."""
        self._is_open = False
        self.last_ended_at = 0.0
        answers, self.answers = self.answers, []
        for answer in answers:
            answer.count()


class KnownRequest(NamedTuple):
    """A request and what answers it.

    Attributes:
        data: All its bytes.
        answer: Answers it.
    """

    data: bytes
    answer: KnownAnswer


class KnownRequests:
    """The known requests of a process.

    Args:
        turn: The current turn.

    Attributes:
        turn: See above.
        by_sample: The requests by bytes of their middle, which differ between nearly all uploads.
    """

    def __init__(self, turn: LoopTurn) -> None:
        self.turn = turn
        self.by_sample: dict[bytes, KnownRequest] = {}
        self._bytes = 0
        self._is_timed = False

    def add(self, data: bytes, answer: KnownAnswer, loop: asyncio.AbstractEventLoop) -> None:
        """Keep a request in place of another that looks alike, and without all others when they take too much."""
        if len(data) > MAX_REQUEST_BYTES:
            return
        sample = sample_of(data)
        other = self.by_sample.pop(sample, None)
        if other is not None:
            self._bytes -= len(other.data)
        if self._bytes + len(data) > MAX_BYTES:
            self._clear()
        self._bytes += len(data)
        self.by_sample[sample] = KnownRequest(data, answer)
        if not self._is_timed:
            self._is_timed = True
            loop.call_later(KEPT_S, self._expire)

    def _expire(self) -> None:
        self._is_timed = False
        self._clear()

    def _clear(self) -> None:
        self.by_sample.clear()
        self._bytes = 0


def sample_of(data: bytes) -> bytes:
    """Return bytes of the middle; `Door.data_received` does the same, without the call."""
    middle = len(data) >> 1
    return data[middle : middle + SAMPLE_BYTES]
