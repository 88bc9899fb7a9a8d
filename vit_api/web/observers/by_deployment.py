"""Gives each request to the observer of the deployment that answered it. Knows nothing of what they record."""

from __future__ import annotations

from collections.abc import Mapping

from vit_api.web.observers.exchange import Exchange, Observer


class ByDeployment:
    """An observer for each deployment.

    Args:
        observers: Those of the deployments, by their places.
        other: That of requests for which no model was chosen, such as those for an unknown one; None ignores them.
    """

    def __init__(self, observers: Mapping[int, Observer], other: Observer | None = None) -> None:
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
