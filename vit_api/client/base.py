"""What the blocking and the asynchronous client share around httpx: settings, requests, and httpx's errors as ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from vit_api.client.protocol import Call, Retries, predict_url, upload_headers
from vit_api.client.results import ClassifyError, TimedOut, UnexpectedAnswer, Unreachable

DEFAULT_TIMEOUT_S = 40.0
"""More than the server's own limit of 30 s, so that its 504 arrives."""

DEFAULT_RETRIES = Retries()

AHEAD = 2
"""Inputs under way or waiting to be taken, as a multiple of those sent at once: so a slow one holds up fewer."""

# Who uses a client sets the number of requests at once. Kept alive are as many as two full batches take.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64)

_CONNECT_S = 10.0
"""A server that is there takes a connection at once; where none does, another try may find one that is."""


@dataclass(frozen=True)
class Upload:
    """One image to send, with what is asked of it; see `Client.classify`."""

    content: bytes
    top_k: int
    fresh: bool

    def options(self, timeout_s: float) -> dict[str, Any]:
        """Return what httpx needs to know of a try that may take so many seconds."""
        return {
            "params": {"top_k": self.top_k},
            "content": self.content,
            "headers": upload_headers(fresh=self.fresh),
            "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
        }


class BaseClient:
    """What both clients know. See `Client` for the arguments."""

    def __init__(self, base_url: str, timeout_s: float, retries: Retries, clock: Callable[[], float]) -> None:
        self._url = _checked_url(base_url)
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be more than 0, not {timeout_s}")
        self._timeout_s = timeout_s
        self._retries = retries
        self._clock = clock

    def begin_call(self) -> Call:
        """Return what decides on the tries for one image, whose time begins now."""
        return Call(self._retries, self._timeout_s, clock=self._clock)


def to_failure(error: httpx.HTTPError | ClassifyError) -> ClassifyError:
    """Word what httpx raises as one of our errors, with its own as the cause."""
    if isinstance(error, ClassifyError):
        return error
    failure: ClassifyError
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        # Not tried again: the server may be at work on it still.
        failure = TimedOut("the server did not answer within the time limit")
    elif isinstance(error, httpx.TransportError):
        reason = str(error) or type(error).__name__
        failure = Unreachable(f"the server can't be reached, or closed the connection: {reason}")
    else:
        failure = UnexpectedAnswer(f"the answer can't be read: {error}")
    failure.__cause__ = error
    return failure


def _checked_url(base_url: str) -> str:
    url = predict_url(base_url)
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"the base URL is malformed: {error}") from error
    return url


def checked_concurrency(concurrency: int) -> int:
    """Return the number of requests at once.

    Raises:
        ValueError: There would be none.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    return concurrency
