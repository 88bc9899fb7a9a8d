"""The client's side of the protocol: what to send, and when to try again.

Pure: it does no I/O, and knows neither httpx nor who waits. Both clients, the blocking and the asynchronous one, are
thin loops around a `Call`.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from vit_api import __version__
from vit_api.client.answers import Answer, to_classification, to_error
from vit_api.client.results import Busy, Classification, ClassifyError, TimedOut, UnexpectedAnswer, Unreachable

DEFAULT_TOP_K = 5
MOST_TOP_K = 20
MAX_ANSWER_BYTES = 2**20
"""An answer with 20 labels has a few kilobytes; a longer body than this is somebody else's."""

_OK = 200
_MOST_TRIES = 100
_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Retries:
    """How often and how long to try.

    Attributes:
        tries: Requests for one image at the most; 1: never try again.
        total_s: Seconds for one image with all its tries and waits; no try begins later.
        first_wait_s: The longest wait after the first failure; it doubles with each further one.
        longest_wait_s: Where the doubling ends. A server's `Retry-After` is added to the wait and may be longer.
    """

    tries: int = 5
    total_s: float = 120.0
    first_wait_s: float = 0.25
    longest_wait_s: float = 8.0

    def __post_init__(self) -> None:
        if not 1 <= self.tries <= _MOST_TRIES:
            raise ValueError(f"tries must be 1 to {_MOST_TRIES}, not {self.tries}")
        if not self.total_s > 0:
            raise ValueError(f"total_s must be more than 0, not {self.total_s}")
        if not 0 <= self.first_wait_s <= self.longest_wait_s:
            raise ValueError("first_wait_s must be at least 0 and at most longest_wait_s")


class Reception:
    """An answer's body while it arrives.

    Args:
        ends_at: When it must be there, by the clock.
        clock: The time in seconds.
    """

    def __init__(self, ends_at: float, clock: Callable[[], float]) -> None:
        self._ends_at = ends_at
        self._clock = clock
        self._body = bytearray()

    def add(self, chunk: bytes) -> None:
        """Keep the next piece.

        Raises:
            TimedOut: The time is up: a body that trickles in never trips a limit on a single read.
            UnexpectedAnswer: It is longer than any answer of this API.
        """
        self._body += chunk
        if len(self._body) > MAX_ANSWER_BYTES:
            raise UnexpectedAnswer(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
        if self._clock() > self._ends_at:
            raise TimedOut("the answer did not arrive in full within the time limit")

    def body(self) -> bytes:
        """Return what arrived."""
        return bytes(self._body)


class Call:
    """All tries to have one image classified.

    Args:
        retries: How often and how long to try.
        timeout_s: Seconds that one try may take.
        clock: The time in seconds, for all limits.
        wall_clock: Seconds since 1970, for a `Retry-After` that names a moment.
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
        self._failure: ClassifyError = TimedOut("the time limit was over before the first try")

    def begin(self) -> float:
        """Begin a try and return the seconds that it may take.

        Raises:
            ClassifyError: The time is up, since a wait took longer than it should have: why the try before failed.
        """
        now = self._clock()
        left_s = self._ends_at - now
        if left_s <= 0:
            raise self._failure
        self._tries += 1
        self._try_ends_at = now + min(self._timeout_s, left_s)
        return min(self._timeout_s, left_s)

    def reception(self) -> Reception:
        """Return what takes the body of this try's answer."""
        return Reception(self._try_ends_at, self._clock)

    def judge(self, outcome: Answer | ClassifyError) -> Classification | float:
        """Return the result, or after how many seconds to try again.

        Raises:
            ClassifyError: Another try makes no sense, or there may be none.
        """
        if isinstance(outcome, Answer):
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

        "Full jitter" as in https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/: it spreads
        clients that failed at the same moment. Those that were told the same `Retry-After` need it, too.
        """
        retries = self._retries
        most_s: float = min(retries.longest_wait_s, retries.first_wait_s * 2 ** (self._tries - 1))
        backoff_s = most_s * self._jitter()
        asked_s = failure.retry_after_s if isinstance(failure, Busy) else None
        return (asked_s or 0.0) + backoff_s


def check_top_k(top_k: int) -> int:
    """Return how many classes to ask for.

    Raises:
        ValueError: The server answers with 1 to 20.
    """
    if not 1 <= top_k <= MOST_TOP_K:
        raise ValueError(f"top_k must be 1 to {MOST_TOP_K}, not {top_k}")
    return top_k


def predict_url(base_url: str) -> str:
    """Return where to post an image.

    Args:
        base_url: The server's address, with the path that a proxy may have put before it.

    Raises:
        ValueError: It is not an http(s) address of that form. A password in it is not repeated in the message.
    """
    try:
        parts = urlsplit(base_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or "@" in parts.netloc or "?" in base_url or "#" in base_url:
        raise ValueError("the base URL must be http(s)://host[:port][/path], without user, password or query")
    return base_url.rstrip("/") + "/predict"


def base_headers(api_key: str | None) -> dict[str, str]:
    """Return the headers that all requests have; the key as RFC 6750, section 2.1, sends it.

    Raises:
        ValueError: The key has characters that no header may have; it is not repeated in the message.
    """
    headers = {"user-agent": f"vit-api-client/{__version__}", "accept": "application/json"}
    if api_key is None:
        return headers
    if not _KEY.fullmatch(api_key):
        raise ValueError("the API key is empty, or has spaces or characters that are not ASCII")
    return headers | {"authorization": f"Bearer {api_key}"}


def upload_headers(*, fresh: bool) -> dict[str, str]:
    """Return the headers of one upload; `fresh` asks for an answer that nobody remembers (RFC 9111, 5.2.1.4)."""
    headers = {"content-type": "application/octet-stream"}
    return headers | {"cache-control": "no-cache"} if fresh else headers
