"""A request with its outcome, as observers get it: metrics, the access log, traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from vit_api.errors import ViTError
from vit_api.web.core.classifier_result import ClassifierResult
from vit_api.web.repeats import CountHits
from vit_api.web.requests import Request


class Exchange(NamedTuple):
    """A request and its response.

    Attributes:
        request: The request, without its body.
        status: The response's HTTP status; 499 if the client disconnected first.
        ended_at: When the response was sent, in seconds of the monotonic clock.
        outcomes: The result or error of each image, in the request's order; or the one error of the whole request.
    """

    request: Request
    status: int
    ended_at: float
    outcomes: Sequence[ClassifierResult | ViTError] = ()

    @property
    def seconds(self) -> float:
        """Seconds from the request's arrival to the end of the response."""
        return self.ended_at - self.request.timeline.arrived_at


class Observer(Protocol):
    """Is called after each response."""

    def observe(self, exchange: Exchange) -> None:
        """Record the exchange. Called on the event loop, so it must be fast."""


@runtime_checkable
class Releasing(Protocol):
    """Keeps something for each request until it has ended."""

    def release(self, request: Request) -> None:
        """Let go of a request that is not observed, since it was answered by what is known of its head."""


@runtime_checkable
class HitObserver(Observer, Protocol):
    """Records no more of a cache hit than numbers."""

    def hit_counter(self, request: Request) -> CountHits:
        """Return what records cache hits of requests with the same head as this one."""
