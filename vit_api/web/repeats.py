"""Repeated requests: answered from the cache by what was found out about an earlier one with the same head.

A cache hit takes microseconds, so what the head alone decides (key, limits, parameters, the headers of the response) is
worked out for the first request only. Of a request that is repeated with its body, the look-up is kept, too. Only hits
are answered here; whatever else comes up is left to `hot_calls`.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vit_api.web.core.classifier_result import CachedPrediction, Tier

if TYPE_CHECKING:
    from vit_api.web.door.known_requests import LoopTurn
    from vit_api.web.observers.exchange import HitObserver, Observer, Releasing

CountHits = Callable[[CachedPrediction, float, int, int], None]
"""Counts hits: their prediction, the seconds that they took together, the bytes of each body, and how many they are."""

ChargeHit = Callable[[tuple[str, int] | None], bytes | None]
"""Charges the client at an address for a hit; see `hot_calls.Limits.charge_hit`."""

_ID = b"\x00"
"""Stands for the id of a request; no header has it."""

_TIMES_MS = [b"0.%03d" % microseconds for microseconds in range(500)]
"""Rendered, so that none is rendered for each hit. A known request that takes longer is answered another way, so that
the times of all fall into the first bucket of the histograms."""
_NO_TIMES = [b""] * len(_TIMES_MS)


class Hit(NamedTuple):
    """A response from the cache.

    Attributes:
        cached: The prediction.
        upload: The upload.
        start: The body, or its start.
        end: The rest of the body, before which is the time that it took, in milliseconds; None: there is no time in it.
    """

    cached: CachedPrediction
    upload: bytes
    start: bytes
    end: bytes | None


class AnsweredHit(NamedTuple):
    """What is a hit's own, for observers that record each.

    Attributes:
        request_id: The request's id.
        client: The address and port of its client.
        began_at: When it was begun, in seconds of the monotonic clock.
        ended_at: When it was answered.
        tier: The cache that had it.
    """

    request_id: bytes
    client: tuple[str, int] | None
    began_at: float
    ended_at: float
    tier: Tier


RecordHit = Callable[[AnsweredHit, CachedPrediction, bytes, int], None]
"""Records a hit: what is its own, the prediction, the upload, and the size of its body."""


class HeldHit(Protocol):
    """A hit that may be found again without a look-up, see `core.classifier.FoundHit`."""

    def is_cached(self) -> bool:
        """Return whether it still is."""

    def count(self, hits: int, seconds: float) -> None:
        """Count so many hits that took so long together."""


def uncount(held: HeldHit | None) -> None:
    """Undo the count of a look-up."""
    if held is not None:
        held.count(-1, 0.0)


class HitFinder(NamedTuple):
    """What finds the responses of a route to requests with one head.

    Attributes:
        find: Returns the response for a body if it is cached; None if that takes longer.
        hold: Returns what `find` has just found, to find it again without a look-up.
    """

    find: Callable[[bytes], Hit | None]
    hold: Callable[[CachedPrediction], HeldHit | None]

    def take_back(self, cached: CachedPrediction) -> None:
        """Undo the count of what `find` has just found: the request is refused, or looked up again."""
        uncount(self.hold(cached))


class Generation:
    """The routes that are served, until others take their place.

    Args:
        ids: The ids of requests.
        hit_observers: What counts hits.
        observers: What records each hit.
        releasing: What keeps something for each request.

    Attributes:
        ids: See above.
        hit_observers: See above.
        observers: See above.
        releasing: See above.
    """

    __slots__ = ("_has_ended", "_known", "_repeats", "hit_observers", "ids", "observers", "releasing")

    def __init__(
        self,
        ids: Iterator[bytes],
        hit_observers: Sequence[HitObserver],
        observers: Sequence[Observer] = (),
        releasing: Sequence[Releasing] = (),
    ) -> None:
        self.ids = ids
        self.hit_observers = hit_observers
        self.observers = observers
        self.releasing = releasing
        self._has_ended = False
        self._repeats: weakref.WeakSet[Repeat] = weakref.WeakSet()
        self._known: weakref.WeakSet[KnownHit] = weakref.WeakSet()

    def add(self, repeat: Repeat) -> None:
        """Have what these routes answer again end with them: at once, if a request that they began ends after them."""
        self._repeats.add(repeat)
        if self._has_ended:
            repeat.close()

    def add_known(self, known: KnownHit) -> None:
        """Have what these routes answer again end with them, see `add`."""
        self._known.add(known)
        if self._has_ended:
            known.close()

    def end(self) -> None:
        """Have nothing answered by these routes any more.

        What was made of them is kept with heads and requests, for clients that may never come again: it would keep the
        routes, and the shared memory of a version that is unloaded.
        """
        self._has_ended = True
        for known in self._known:  # first: they are counted by what the others keep
            known.close()
        for repeat in self._repeats:
            repeat.close()


class KnownHit:
    """The answer to requests with one head and one body.

    Args:
        parts: What is before the id, between the id and the time, and after the time.
        held: What tells whether it is still cached.
        hit: The hit.
        repeat: What all requests with the same head have in common.
        received_bytes: The size of the body.
    """

    __slots__ = (
        "__weakref__",
        "_answered",
        "_before",
        "_between",
        "_charge",
        "_checked_in",
        "_end",
        "_held",
        "_hit",
        "_hits",
        "_ids",
        "_received_bytes",
        "_repeat",
        "_seconds",
        "_times",
    )

    def __init__(
        self,
        parts: tuple[bytes, bytes, bytes],
        held: HeldHit,
        hit: Hit,
        repeat: Repeat,
        received_bytes: int,
    ) -> None:
        self._before, self._between, self._end = parts
        self._held: HeldHit | None = held
        self._hit = hit
        self._repeat = repeat
        self._ids = repeat.generation.ids
        self._charge = repeat.charge
        self._times = _NO_TIMES if hit.end is None else _TIMES_MS
        self._received_bytes = received_bytes
        self._answered: list[AnsweredHit] | None = None if repeat.record is None else []
        self._checked_in = -1
        self._hits = 0
        self._seconds = 0.0
        repeat.generation.add_known(self)

    def render(self, began_at: float, turn: LoopTurn, client: tuple[str, int] | None) -> bytes | None:
        """Return the response to the next request, see `door.application.KnownAnswer`."""
        if self._checked_in != turn.number and not self._check(turn):
            return None
        turn.last_ended_at = ended_at = time.monotonic()
        seconds = ended_at - began_at
        microseconds = int(seconds * 1e6)
        if microseconds >= len(_TIMES_MS):
            return None
        lines: bytes | None = b""
        if self._charge is not None:
            lines = self._charge(client)
            if lines is None:
                return None
        self._hits += 1
        self._seconds += seconds
        request_id = next(self._ids)
        if self._answered is not None:
            self._answered.append(AnsweredHit(request_id, client, began_at, ended_at, Tier.LOCAL))
        if lines:
            request_id += lines
        return b"".join((self._before, request_id, self._between, self._times[microseconds], self._end))

    def _check(self, turn: LoopTurn) -> bool:
        """Return whether it may be used in this turn."""
        if self._held is None or not self._held.is_cached():
            return False
        self._checked_in = turn.number
        turn.answers.append(self)
        return True

    def count(self) -> None:
        """Record those that were answered since the last call."""
        hits, seconds = self._hits, self._seconds
        if hits and self._held is not None:
            self._hits, self._seconds = 0, 0.0
            self._held.count(hits, seconds)
            for count in self._repeat.counters:
                count(self._hit.cached, seconds, self._received_bytes, hits)
        if self._answered and self._repeat.record is not None:
            answered, self._answered = self._answered, []
            for one in answered:
                self._repeat.record(one, self._hit.cached, self._hit.upload, self._received_bytes)

    def close(self) -> None:
        """Record what was answered, and answer no more."""
        self.count()
        self._held = None


class Repeat:
    """What the requests with one head have in common.

    Args:
        finder: Finds responses.
        counters: Count the hits.
        lines: The lines of the headers, with places for the length of the body and for the request's id.
        generation: The routes that the first request was for.
        max_bytes: Maximum size of a body.
        record: Records each hit; None: numbers suffice.
        charge: Charges the client of each; None: nothing does.

    Attributes:
        charge: See above.
        counters: See above.
        generation: See above.
        record: See above.
    """

    __slots__ = (
        "__weakref__",
        "_arrived_at",
        "_finder",
        "_hit",
        "_id",
        "_lines",
        "_max_bytes",
        "charge",
        "counters",
        "generation",
        "record",
    )

    def __init__(
        self,
        finder: HitFinder,
        counters: Sequence[CountHits],
        lines: bytes,
        *,
        generation: Generation,
        max_bytes: int,
        record: RecordHit | None = None,
        charge: ChargeHit | None = None,
    ) -> None:
        self.charge = charge
        self.counters = counters
        self.generation = generation
        self.record = record
        self._finder: HitFinder | None = finder
        self._lines = lines
        self._max_bytes = max_bytes
        self._arrived_at = 0.0
        self._id = b""
        self._hit: Hit | None = None
        generation.add(self)

    def find(self, body: bytes, client: tuple[str, int] | None) -> bytes | None:
        """Return the response but for the headers that all have in common, see `door.application.RepeatedRequests`."""
        finder = self._finder
        if finder is None or len(body) > self._max_bytes:
            return None
        self._arrived_at = arrived_at = time.monotonic()
        self._hit = hit = finder.find(body)
        if hit is None:
            return None
        limit_lines = b"" if self.charge is None else self.charge(client)
        if limit_lines is None:
            finder.take_back(hit.cached)
            return None
        content = hit.start
        if hit.end is not None:
            content = b"%b%.3f%b" % (content, (time.monotonic() - arrived_at) * 1000, hit.end)
        self._id = request_id = next(self.generation.ids)
        return self._lines % (len(content), request_id + limit_lines) + content

    def end(self, received_bytes: int, client: tuple[str, int] | None) -> None:
        """Record the request, whose response was written."""
        hit = self._hit
        assert hit is not None
        ended_at, tier = time.monotonic(), hit.cached.take_tier()
        for count in self.counters:
            count(hit.cached, ended_at - self._arrived_at, received_bytes, 1)
        if self.record is not None:
            answered = AnsweredHit(self._id, client, self._arrived_at, ended_at, tier)
            self.record(answered, hit.cached, hit.upload, received_bytes)

    def known(self, received_bytes: int) -> KnownHit | None:
        """Return what answers further requests like the one that was found last, given the size of its body."""
        hit = self._hit
        held = None if hit is None or self._finder is None else self._finder.hold(hit.cached)
        if hit is None or held is None:
            return None
        length = len(hit.start) + (0 if hit.end is None else len(_TIMES_MS[0]) + len(hit.end))
        before, _, after = (self._lines % (length, _ID)).partition(_ID)
        return KnownHit((before, after + hit.start, hit.end or b""), held, hit, self, received_bytes)

    def close(self) -> None:
        """Answer no more."""
        self._finder = self._hit = None
        self.counters = ()
        self.record = self.charge = None
