"""A URL that gets CloudEvents 1.0 in batches. Knows nothing of what the events say."""

from __future__ import annotations

from collections.abc import Sequence

_TIMEOUT_S = 5.0
_MEDIA_TYPE = "application/cloudevents-batch+json; charset=utf-8"
_PASSING = frozenset({408, 425, 429})
"""Statuses below 500 after which the same request may succeed later."""


class Refused(Exception):
    """The receiver will not take these events, however often they are sent."""


class UrlSink:
    """Send events by POST, in the batched content mode of CloudEvents' HTTP binding.

    Args:
        url: Where to; may have credentials for basic authentication. It is never logged, since it may have a token.
        timeout_s: Seconds that connecting, sending, or waiting for a part of the response may take.
    """

    def __init__(self, url: str, timeout_s: float = _TIMEOUT_S) -> None:
        import httpx  # not at the top: it takes a tenth of a second, and few servers send events

        self._url = url
        self._unreachable = (httpx.TransportError, httpx.InvalidURL)
        self._client = httpx.Client(timeout=timeout_s, headers={"content-type": _MEDIA_TYPE, "user-agent": "vit-api"})

    def reopen(self) -> None:
        """Do nothing: there is no file."""

    def write(self, events: Sequence[bytes]) -> int:
        """Send events, and return their number.

        Raises:
            OSError: The receiver can't be reached or fails, and may take them later.
            Refused: It never will.
        """
        try:
            with self._client.stream("POST", self._url, content=b"[" + b",".join(events) + b"]") as response:
                status = response.status_code
        except self._unreachable as error:
            raise OSError(f"the receiver of decisions can't be reached ({type(error).__name__})") from None
        if 200 <= status < 300:
            return len(events)
        if status >= 500 or status in _PASSING:
            raise OSError(f"the receiver of decisions answered {status}")
        raise Refused(f"the receiver of decisions answered {status}")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
