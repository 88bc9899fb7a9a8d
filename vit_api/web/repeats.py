"""Repeated requests: answered from the cache by what was found out about an earlier one with the same head.

A cache hit takes microseconds, so what the head alone decides (key, limits, parameters, the headers of the response) is
worked out for the first request only. Of a request that is repeated with its body, the look-up is kept, too. Only hits
are answered here; whatever else comes up is left to `hot_calls`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vit_api.web.core.classifier_result import CachedPrediction

if TYPE_CHECKING:
    from vit_api.web.door.known_requests import Turn
    from vit_api.web.observers.exchange import HitObserver

CountHits = Callable[[CachedPrediction, float, int, int], None]
"""Counts hits: their prediction, the seconds that they took together, the bytes of each body, and how many they are."""

_ID = b"\x00"
"""Stands for the id of a request; no header has it."""

_TIMES_MS = [b"0.%03d" % microseconds for microseconds in range(500)]
"""Rendered, so that none is rendered for each hit. A known request that takes longer is answered another way, so that
the times of all fall into the first bucket of the histograms."""


class Hit(NamedTuple):
    """A response from the cache; between the two parts of its body is the time that it took, in milliseconds.

    Attributes:
        cached: The prediction.
        start: The start of the body.
        end: The end of the body.
    """

    cached: CachedPrediction
    start: bytes
    end: bytes


class HeldHit(Protocol):
    """A hit that may be found again without a look-up, see `core.classifier.HeldHit`."""

    def is_cached(self) -> bool:
        """Return whether it still is."""

    def count(self, hits: int, seconds: float) -> None:
        """Count so many hits that took so long together."""


class HitFinder(NamedTuple):
    """What finds the responses of a route to requests with one head.

    Attributes:
        find: Returns the response for a body if it is cached; None if that takes longer.
        hold: Returns what `find` has just found, to find it again without a look-up.
    """

    find: Callable[[bytes], Hit | None]
    hold: Callable[[CachedPrediction], HeldHit | None]


class Generation:
    """The routes that are served, until others take their place.

    Args:
        ids: The ids of requests.
        hit_observers: What counts hits; None if more than numbers is recorded of each.

    Attributes:
        ids: See above.
        hit_observers: See above.
        is_current: Whether they are still served.
    """

    __slots__ = ("hit_observers", "ids", "is_current")

    def __init__(self, ids: Iterator[bytes], hit_observers: Sequence[HitObserver] | None) -> None:
        self.ids = ids
        self.hit_observers = hit_observers
        self.is_current = True


class KnownHit:
    """The answer to requests with one head and one body.

    Args:
        parts: What is before the id, between the id and the time, and after the time.
        held: The hit.
        cached: Its prediction.
        counters: Count the hits.
        generation: The routes that the first request was for.
        received_bytes: The size of the body.
    """

    __slots__ = (
        "_before",
        "_between",
        "_cached",
        "_checked_in",
        "_counters",
        "_end",
        "_generation",
        "_held",
        "_hits",
        "_ids",
        "_received_bytes",
        "_seconds",
    )

    def __init__(
        self,
        parts: tuple[bytes, bytes, bytes],
        held: HeldHit,
        cached: CachedPrediction,
        counters: Sequence[CountHits],
        *,
        generation: Generation,
        received_bytes: int,
    ) -> None:
        self._before, self._between, self._end = parts
        self._held = held
        self._cached = cached
        self._counters = counters
        self._generation = generation
        self._ids = generation.ids
        self._received_bytes = received_bytes
        self._checked_in = -1
        self._hits = 0
        self._seconds = 0.0

    def render(self, began_at: float, turn: Turn) -> bytes | None:
        """Return the response to the next request, see `door.application.KnownAnswer`."""
        if self._checked_in != turn.number and not self._check(turn):
            return None
        turn.last_ended_at = ended_at = time.monotonic()
        seconds = ended_at - began_at
        microseconds = int(seconds * 1e6)
        if microseconds >= len(_TIMES_MS):
            return None
        self._hits += 1
        self._seconds += seconds
        return b"".join((self._before, next(self._ids), self._between, _TIMES_MS[microseconds], self._end))

    def _check(self, turn: Turn) -> bool:
        """Return whether it may be used in this turn."""
        if not self._generation.is_current or not self._held.is_cached():
            return False
        self._checked_in = turn.number
        turn.answers.append(self)
        return True

    def count(self) -> None:
        """Record those that were answered since the last call."""
        hits, seconds = self._hits, self._seconds
        if hits:
            self._hits, self._seconds = 0, 0.0
            self._held.count(hits, seconds)
            for count in self._counters:
                count(self._cached, seconds, self._received_bytes, hits)


class Repeat:
    """What the requests with one head have in common.

    Args:
        finder: Finds responses.
        counters: Count the hits.
        lines: The lines of the headers, with places for the length of the body and for the request's id.
        generation: The routes that the first request was for.
        max_bytes: Maximum size of a body.
    """

    __slots__ = ("_arrived_at", "_counters", "_finder", "_generation", "_hit", "_lines", "_max_bytes")

    def __init__(
        self,
        finder: HitFinder,
        counters: Sequence[CountHits],
        lines: bytes,
        *,
        generation: Generation,
        max_bytes: int,
    ) -> None:
        self._finder = finder
        self._counters = counters
        self._lines = lines
        self._generation = generation
        self._max_bytes = max_bytes
        self._arrived_at = 0.0
        self._hit: Hit | None = None

    def find(self, body: bytes) -> bytes | None:
        """Return the response but for the headers that all have in common; None if it is not cached."""
        generation = self._generation
        if len(body) > self._max_bytes or not generation.is_current:
            return None
        self._arrived_at = arrived_at = time.monotonic()
        self._hit = hit = self._finder.find(body)
        if hit is None:
            return None
        content = b"%b%.3f%b" % (hit.start, (time.monotonic() - arrived_at) * 1000, hit.end)
        return self._lines % (len(content), next(generation.ids)) + content

    def end(self, received_bytes: int) -> None:
        """Count the request, whose response was written."""
        hit = self._hit
        assert hit is not None
        seconds = time.monotonic() - self._arrived_at
        for count in self._counters:
            count(hit.cached, seconds, received_bytes, 1)

    def known(self, received_bytes: int) -> KnownHit | None:
        """Return what answers further requests like the one that was found last, given the size of its body."""
        hit = self._hit
        held = None if hit is None else self._finder.hold(hit.cached)
        if hit is None or held is None:
            return None
        length = len(hit.start) + len(_TIMES_MS[0]) + len(hit.end)
        before, _, after = (self._lines % (length, _ID)).partition(_ID)
        return KnownHit(
            (before, after + hit.start, hit.end),
            held,
            hit.cached,
            self._counters,
            generation=self._generation,
            received_bytes=received_bytes,
        )
