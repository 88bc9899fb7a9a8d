"""Asks a server over HTTP whether it is well: ready, and an image is classified. Knows nothing of where it runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

_ANSWER_S = 60.0
_PASSING = {404, 502, 503, 504}
"""What a proxy answers while it still looks for the container, and our server until the model is loaded."""


class SmokeFailure(Exception):
    """The server isn't well; the message says what it answered."""


@dataclass(frozen=True)
class SmokeTest:
    """What to ask, and for how long.

    Attributes:
        image: An image that any model can classify.
        timeout_s: Until the server must be ready and have classified it.
        poll_s: Between two attempts.
        key: One of the server's `VIT_API_API_KEYS`, if it has any.
    """

    image: bytes
    timeout_s: float = 600.0
    poll_s: float = 2.0
    key: str | None = None

    def run(self, url: str, hub_token: str | None) -> None:
        """Ask the server at this address.

        Args:
            url: Its address.
            hub_token: What a private Space asks for; None for others, which would see the token.

        Raises:
            SmokeFailure: It does not get ready in time, or answers wrongly.
        """
        headers = {"Cache-Control": "no-cache"}  # the model must run
        if hub_token:
            headers["Authorization"] = f"Bearer {hub_token}"
        if self.key:
            headers["X-API-Key"] = self.key
        # Redirects aren't followed: they would take the keys to another host.
        with httpx.Client(base_url=url, headers=headers, timeout=_ANSWER_S) as client:
            deadline = time.monotonic() + self.timeout_s
            while problem := self._attempt(client):
                if time.monotonic() >= deadline:
                    raise SmokeFailure(f"not well after {self.timeout_s:g} s: {problem}")
                time.sleep(self.poll_s)

    def _attempt(self, client: httpx.Client) -> str | None:
        """Return what is in the way for now; None if all is well."""
        try:
            ready = client.get("/health/ready")
            if ready.status_code in _PASSING:
                return f"/health/ready answers {ready.status_code}"
            _expect_ok("/health/ready", ready)
            answer = client.post("/predict", params={"top_k": 1}, content=self.image)
        except httpx.TransportError as error:
            return f"no answer ({type(error).__name__})"
        if answer.status_code in _PASSING:
            return f"/predict answers {answer.status_code}"
        _expect_ok("/predict", answer)
        _expect_prediction(answer)
        return None


def _expect_ok(path: str, answer: httpx.Response) -> None:
    if answer.status_code == 200:
        return
    hint = "; a server with VIT_API_API_KEYS needs SPACE_API_KEY" if answer.status_code == 401 else ""
    raise SmokeFailure(f"{path} answers {answer.status_code} ({_json(answer).get('code', 'no code')}){hint}")


def _expect_prediction(answer: httpx.Response) -> None:
    try:
        (prediction,) = _json(answer)["predictions"]
        is_right = bool(prediction["label"]) and 0 < float(prediction["confidence"]) <= 1
    except (KeyError, TypeError, ValueError):
        is_right = False
    if not is_right:
        raise SmokeFailure("/predict answers 200, but not with one label and its probability")


def _json(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
