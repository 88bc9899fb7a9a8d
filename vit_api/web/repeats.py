"""Repeated requests: answered from the cache by what was found out about an earlier one with the same head.

A cache hit takes 20 µs, so what the head alone decides (key, limits, parameters, the headers of the response) is worked
out for the first request only. Only hits are answered here; whatever else comes up is left to `hot_calls`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vit_api.web.core.classifier_result import CachedPrediction

if TYPE_CHECKING:
    from vit_api.web.observers.exchange import HitObserver

CountHit = Callable[[CachedPrediction, float, int], None]
"""Counts a hit: the prediction, the seconds that the request took, and the bytes of its body."""


class Hit(NamedTuple):
    """A response from the cache.

    Attributes:
        cached: The prediction.
        body: The body of the response.
    """

    cached: CachedPrediction
    body: bytes


FindHit = Callable[[bytes, float], Hit | None]
"""Returns the response for an upload if it is cached, given when its request arrived; None if that takes longer."""


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


class Repeat:
    """What the requests with one head have in common.

    Args:
        find_hit: Finds responses.
        counters: Count the hits.
        lines: The lines of the headers, with places for the length of the body and for the request's id.
        generation: The routes that the first request was for.
        max_bytes: Maximum size of a body.
    """

    __slots__ = ("_arrived_at", "_cached", "_counters", "_find_hit", "_generation", "_lines", "_max_bytes")

    def __init__(
        self,
        find_hit: FindHit,
        counters: Sequence[CountHit],
        lines: bytes,
        *,
        generation: Generation,
        max_bytes: int,
    ) -> None:
        self._find_hit = find_hit
        self._counters = counters
        self._lines = lines
        self._generation = generation
        self._max_bytes = max_bytes
        self._arrived_at = 0.0
        self._cached: CachedPrediction | None = None

    def find(self, body: bytes) -> bytes | None:
        """Return the response but for the headers that all have in common; None if it is not cached."""
        generation = self._generation
        if len(body) > self._max_bytes or not generation.is_current:
            return None
        self._arrived_at = arrived_at = time.monotonic()
        hit = self._find_hit(body, arrived_at)
        if hit is None:
            return None
        self._cached, content = hit
        return self._lines % (len(content), next(generation.ids)) + content

    def end(self, received_bytes: int) -> None:
        """Count the request, whose response was written."""
        cached = self._cached
        assert cached is not None
        seconds = time.monotonic() - self._arrived_at
        for count in self._counters:
            count(cached, seconds, received_bytes)
