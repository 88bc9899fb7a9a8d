"""What the sync and async clients share around httpx: settings, requests, and the mapping of httpx's errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from vit_api.client.protocol import Call, Retries, predict_parameters, predict_url, upload_headers
from vit_api.client.results import ClassifyError, TimedOut, UnexpectedAnswer, Unreachable

DEFAULT_TIMEOUT_S = 40.0
"""More than the server's own limit of 30 s, so that its 504 arrives first."""

DEFAULT_RETRIES = Retries()

AHEAD = 2
"""Images taken ahead of the results, as a multiple of the concurrency: one slow image does not stall the rest."""

# The caller limits the number of concurrent requests. As many connections as two full batches need are kept alive.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64)

_CONNECT_S = 10.0
"""A running server accepts a connection at once; if none does, a retry may reach one that is up."""


@dataclass(frozen=True)
class Options:
    """The options of `Client.classify`."""

    top_k: int | str | None
    fresh: bool
    frames: int = 1
    threshold: float | None = None


@dataclass(frozen=True)
class EncodedUpload:
    """One image as it is sent, with its options."""

    content: bytes
    chosen: Options

    def options(self, timeout_s: float) -> dict[str, Any]:
        """Return the httpx request options for an attempt that may take `timeout_s` seconds."""
        return {
            "params": predict_parameters(self.chosen.top_k, self.chosen.threshold, self.chosen.frames),
            "content": self.content,
            "headers": upload_headers(fresh=self.chosen.fresh),
            "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
        }


class BaseClient:
    """The state that both clients have. See `Client` for the arguments."""

    def __init__(self, base_url: str, timeout_s: float, retries: Retries, clock: Callable[[], float]) -> None:
        self._url = _checked_url(base_url)
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be more than 0, not {timeout_s}.")
        self._timeout_s = timeout_s
        self._retries = retries
        self._clock = clock

    def begin_call(self) -> Call:
        """Return the retry state for one image, whose time starts now."""
        return Call(self._retries, self._timeout_s, clock=self._clock)


def to_failure(error: httpx.HTTPError | ClassifyError) -> ClassifyError:
    """Return the `ClassifyError` for what httpx raised, with that as its cause."""
    if isinstance(error, ClassifyError):
        return error
    failure: ClassifyError
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        # Not retried: the server may still be working on it.
        failure = TimedOut("The server did not respond within the time limit.")
    elif isinstance(error, httpx.TransportError):
        reason = str(error) or type(error).__name__
        failure = Unreachable(f"The server can't be reached, or it closed the connection: {reason.removesuffix('.')}.")
    else:
        failure = UnexpectedAnswer(f"The response can't be read: {error}.")
    failure.__cause__ = error
    return failure


def _checked_url(base_url: str) -> str:
    url = predict_url(base_url)
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"The base URL is malformed: {error}.") from error
    return url


def checked_concurrency(concurrency: int) -> int:
    """Return the number of concurrent requests.

    Raises:
        ValueError: It is less than 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}.")
    return concurrency
