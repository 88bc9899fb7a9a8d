"""Counts the requests in flight for each deployment, so that one is unloaded only once it has answered all of its own.

For one HTTP process, on its event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from vit_api.web.core.deployment_choice import Chosen
from vit_api.web.observers.exchange import Exchange
from vit_api.web.repeats import CountHits
from vit_api.web.requests import Request


class InFlight:
    """The number of requests of each deployment, by its place; an observer of their ends."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._on_empty: dict[int, Callable[[], None]] = {}

    def add(self, place: int, before: Chosen | None) -> None:
        """Count a request for a deployment.

        Args:
            place: The deployment.
            before: What the same request was for before; None if it is new.
        """
        self._counts[place] += 1
        if before is not None:
            self._remove(before.place)

    def observe(self, exchange: Exchange) -> None:
        """Stop counting a request that ends."""
        if exchange.request.deployment is not None:
            self._remove(exchange.request.deployment.place)

    def hit_counter(self, _: Request) -> CountHits:
        """Return what ignores hits, which end in the call that reads them, so that they are never counted here."""
        return lambda *_: None

    def release(self, request: Request) -> None:
        """Stop counting a request that was answered as such a hit."""
        if request.deployment is not None:
            self._remove(request.deployment.place)

    def when_empty(self, place: int, call: Callable[[], None]) -> None:
        """Call a function once no request for a deployment is in flight, perhaps at once."""
        if self._counts[place]:
            self._on_empty[place] = call
        else:
            call()

    def _remove(self, place: int) -> None:
        self._counts[place] -= 1
        if not self._counts[place] and place in self._on_empty:
            self._on_empty.pop(place)()
