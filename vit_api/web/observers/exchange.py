"""One request and what became of it, for those who watch: metrics, the access log, traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from vit_api.errors import ViTError
from vit_api.web.core.classifier import ClassifierResult
from vit_api.web.requests import Request


class Exchange(NamedTuple):
    """A request that has its answer.

    Attributes:
        request: The request; its body is gone.
        status: The answer's HTTP status; 499 if the client hung up first.
        ended_at: When its answer was sent, in seconds of the monotonic clock.
        outcomes: What became of each image, in the request's order; or the failure of the whole request.
    """

    request: Request
    status: int
    ended_at: float
    outcomes: Sequence[ClassifierResult | ViTError] = ()

    @property
    def seconds(self) -> float:
        """From the request's arrival to its answer's end."""
        return self.ended_at - self.request.timeline.arrived_at


class Observer(Protocol):
    """What watches."""

    def observe(self, exchange: Exchange) -> None:
        """Take note. On the event loop, after the answer: to be quick."""
