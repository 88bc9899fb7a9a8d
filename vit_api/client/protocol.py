"""The client's side of the protocol: what to send, and when to retry.

Pure: it does no I/O and does not know httpx. The sync and the async client are thin loops around a `Call`.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from vit_api import __version__
from vit_api.client.answers import HttpAnswer, to_classification, to_error
from vit_api.client.results import Busy, Classification, ClassifyError, TimedOut, UnexpectedAnswer, Unreachable

DEFAULT_TOP_K = 5
MAX_FRAMES = 32
MAX_ANSWER_BYTES = 2**24
"""A response with 20 labels has a few kilobytes, one with tens of thousands a few megabytes."""

ALL = "all"
"""For `top_k`: every class."""

_OK = 200
_MAX_TRIES = 100
_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Retries:
    """How often and for how long to retry.

    Attributes:
        tries: Maximum number of attempts for one image; 1 means no retries.
        total_s: Time limit for one image with all attempts and waits, in seconds; no attempt starts after it.
        first_wait_s: The longest wait after the first failure; it doubles with each further one.
        longest_wait_s: The limit of the doubling. A server's `Retry-After` is added to the wait and may be longer.
    """

    tries: int = 5
    total_s: float = 120.0
    first_wait_s: float = 0.25
    longest_wait_s: float = 8.0

    def __post_init__(self) -> None:
        if not 1 <= self.tries <= _MAX_TRIES:
            raise ValueError(f"tries must be from 1 to {_MAX_TRIES}, not {self.tries}.")
        if not self.total_s > 0:
            raise ValueError(f"total_s must be more than 0, not {self.total_s}.")
        if not 0 <= self.first_wait_s <= self.longest_wait_s:
            raise ValueError("first_wait_s must be at least 0 and at most longest_wait_s.")


class Reception:
    """A response's body while it arrives.

    Args:
        ends_at: When it must be complete, by the clock.
        clock: Returns the time in seconds.
    """

    def __init__(self, ends_at: float, clock: Callable[[], float]) -> None:
        self._ends_at = ends_at
        self._clock = clock
        self._body = bytearray()

    def add(self, chunk: bytes) -> None:
        """Append the next chunk.

        Raises:
            TimedOut: The time is up. A body that trickles in never exceeds the timeout of a single read.
            UnexpectedAnswer: The body is longer than any response of this API.
        """
        self._body += chunk
        if len(self._body) > MAX_ANSWER_BYTES:
            raise UnexpectedAnswer(f"The response has more than {MAX_ANSWER_BYTES} bytes: check the base URL.")
        if self._clock() > self._ends_at:
            raise TimedOut("The response did not arrive completely within the time limit.")

    def body(self) -> bytes:
        """Return what has arrived."""
        return bytes(self._body)


class Call:
    """All attempts to classify one image.

    Args:
        retries: How often and for how long to retry.
        timeout_s: Time limit of one attempt, in seconds.
        clock: Returns the time in seconds, for all limits.
        wall_clock: Returns seconds since 1970, for a `Retry-After` that is a date.
        jitter: Returns a random number from 0 to 1.
    """

    def __init__(
        self,
        retries: Retries,
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._retries = retries
        self._timeout_s = timeout_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._ends_at = clock() + retries.total_s
        self._tries = 0
        self._failure: ClassifyError = TimedOut("The time limit passed before the first attempt.")

    def begin(self) -> float:
        """Begin an attempt and return the seconds that it may take.

        Raises:
            ClassifyError: The time is up, because a wait took longer than asked for: the last attempt's failure.
        """
        now = self._clock()
        left_s = self._ends_at - now
        if left_s <= 0:
            raise self._failure
        self._tries += 1
        self._try_ends_at = now + min(self._timeout_s, left_s)
        return min(self._timeout_s, left_s)

    def reception(self) -> Reception:
        """Return a buffer for the body of this attempt's response."""
        return Reception(self._try_ends_at, self._clock)

    def judge(self, outcome: HttpAnswer | ClassifyError) -> Classification | float:
        """Return the result, or the number of seconds to wait before a retry.

        Raises:
            ClassifyError: The failure is final, or no attempts or time are left.
        """
        if isinstance(outcome, HttpAnswer):
            if outcome.status == _OK:
                return to_classification(outcome)
            outcome = to_error(outcome, self._wall_clock())
        if not isinstance(outcome, Busy | Unreachable) or self._tries >= self._retries.tries:
            raise outcome
        wait_s = self._wait_s(outcome)
        if self._clock() + wait_s >= self._ends_at:
            raise outcome
        self._failure = outcome
        return wait_s

    def _wait_s(self, failure: ClassifyError) -> float:
        """Return capped exponential backoff with full jitter, on top of what the server asked for.

        Full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/) spreads out clients
        that failed at the same moment, and those that were sent the same `Retry-After`.
        """
        retries = self._retries
        max_s: float = min(retries.longest_wait_s, retries.first_wait_s * 2 ** (self._tries - 1))
        backoff_s = max_s * self._jitter()
        asked_s = failure.retry_after_s if isinstance(failure, Busy) else None
        return (asked_s or 0.0) + backoff_s


def check_top_k(top_k: int | str | None) -> None:
    """Check the number of classes to ask for; only the server knows how many the model has.

    Raises:
        ValueError: It is neither a positive integer nor `all` nor None.
    """
    if top_k is None or top_k == ALL:
        return
    if isinstance(top_k, str) or top_k < 1:
        raise ValueError(f"top_k must be a positive integer or {ALL!r}, not {top_k!r}.")


def check_threshold(threshold: float | None) -> None:
    """Check the minimum probability to ask for.

    Raises:
        ValueError: It is not from 0 to 1.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be from 0 to 1, not {threshold}.")


def check_options(top_k: int | str | None, threshold: float | None, frames: int) -> None:
    """Check the options of a classification.

    Raises:
        ValueError: One is out of range.
    """
    check_top_k(top_k)
    check_threshold(threshold)
    check_frames(frames)


def predict_parameters(top_k: int | str | None, threshold: float | None, frames: int) -> dict[str, int | str | float]:
    """Return the parameters of a request's query; without any, the server's defaults hold.

    Args:
        top_k: The number of classes, or `all`; None for the server's default.
        threshold: The minimum probability; None for any.
        frames: Maximum number of frames.
    """
    if top_k is None and threshold is None:
        top_k = DEFAULT_TOP_K
    parameters = {"top_k": top_k, "threshold": threshold, "frames": frames if frames > 1 else None}
    return {name: value for name, value in parameters.items() if value is not None}


def check_frames(frames: int) -> int:
    """Return the number of frames.

    Raises:
        ValueError: It is out of range.
    """
    if not 1 <= frames <= MAX_FRAMES:
        raise ValueError(f"frames must be from 1 to {MAX_FRAMES}, not {frames}.")
    return frames


def predict_url(base_url: str) -> str:
    """Return the URL to post an image to.

    Args:
        base_url: The server's address, with the path prefix of a proxy, if any.

    Raises:
        ValueError: It is not an http(s) address of that form. The message does not repeat it: it may contain a
            password.
    """
    try:
        parts = urlsplit(base_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or "@" in parts.netloc or "?" in base_url or "#" in base_url:
        raise ValueError("The base URL must be http(s)://host[:port][/path], without user, password or query.")
    return base_url.rstrip("/") + "/predict"


def base_headers(api_key: str | None) -> dict[str, str]:
    """Return the headers of all requests, with the key in the form of RFC 6750, section 2.1.

    Raises:
        ValueError: The key has characters that a header can't have. The message does not repeat it.
    """
    headers = {"user-agent": f"vit-api-client/{__version__}", "accept": "application/json"}
    if api_key is None:
        return headers
    if not _KEY.fullmatch(api_key):
        raise ValueError("The API key must not be empty, and must have no spaces and only ASCII characters.")
    return headers | {"authorization": f"Bearer {api_key}"}


def upload_headers(*, fresh: bool) -> dict[str, str]:
    """Return the headers of one upload; `fresh` bypasses caches (RFC 9111, 5.2.1.4)."""
    headers = {"content-type": "application/octet-stream"}
    return headers | {"cache-control": "no-cache"} if fresh else headers
