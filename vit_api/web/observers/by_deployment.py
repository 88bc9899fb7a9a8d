"""Gives each request to the observer of the deployment that answered it. Knows nothing of what they record."""

from __future__ import annotations

from collections.abc import Mapping

from vit_api.web.observers.exchange import Exchange, HitObserver
from vit_api.web.repeats import CountHits
from vit_api.web.requests import Request


class ByDeployment:
    """An observer for each deployment.

    Args:
        observers: Those of the deployments, by their places.
        other: That of requests for which no model was chosen, such as those for an unknown one; None ignores them.
    """

    def __init__(self, observers: Mapping[int, HitObserver], other: HitObserver | None = None) -> None:
        self._observers = observers
        self._other = other

    def observe(self, exchange: Exchange) -> None:
        """Record the exchange."""
        chosen = exchange.request.deployment
        if chosen is not None:
            observer = self._observers.get(chosen.place)
            if observer is not None:  # one that was unloaded before this request ended has none
                observer.observe(exchange)
        elif self._other is not None:
            self._other.observe(exchange)

    def hit_counter(self, request: Request) -> CountHits:
        """Return what counts cache hits of the deployment that has answered this request."""
        chosen = request.deployment
        observer = self._other if chosen is None else self._observers.get(chosen.place)
        return _ignore if observer is None else observer.hit_counter(request)


def _ignore(*_: object) -> None: ...
