"""A smoke test of a server over HTTP: it is ready and classifies an image. Must not know where the server runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

_RESPONSE_S = 60.0
_TRANSIENT = {404, 502, 503, 504}
"""Responses of a proxy that can't reach the container yet, and of the server until the model is loaded."""


class SmokeFailure(Exception):
    """The server failed the test; the message says how it responded."""


@dataclass(frozen=True)
class SmokeTest:
    """What to send, and for how long to try.

    Attributes:
        image: The image to classify.
        timeout_s: Time until the server must be ready and have classified it.
        poll_s: Time between two attempts.
        key: One of the server's `VIT_API_API_KEYS`, if it has any.
        key_variable: Where the key comes from, for the message if it is missing or wrong.
    """

    image: bytes
    timeout_s: float = 600.0
    poll_s: float = 2.0
    key: str | None = None
    key_variable: str = "SPACE_API_KEY"

    def run(self, url: str, hub_token: str | None) -> None:
        """Test the server at this address.

        Args:
            url: The server's base address.
            hub_token: The token that the hub's proxy requires. None for a public server, which would see the token.

        Raises:
            SmokeFailure: The server is not ready in time, or its response is wrong.
        """
        headers = {"Cache-Control": "no-cache"}  # the model must run
        if hub_token:
            headers["Authorization"] = f"Bearer {hub_token}"
        if self.key:
            headers["X-API-Key"] = self.key
        # Redirects aren't followed: they would send the keys to another host.
        with httpx.Client(base_url=url, headers=headers, timeout=_RESPONSE_S) as client:
            deadline = time.monotonic() + self.timeout_s
            while problem := self._attempt(client):
                if time.monotonic() >= deadline:
                    raise SmokeFailure(f"The server failed the smoke test for {self.timeout_s:g} s: {problem}")
                time.sleep(self.poll_s)

    def _attempt(self, client: httpx.Client) -> str | None:
        """Return why the test can't pass yet, or None if it passed."""
        try:
            ready = client.get("/health/ready")
            if ready.status_code in _TRANSIENT:
                return f"/health/ready responds with status {ready.status_code}."
            self._expect_ok("/health/ready", ready)
            response = client.post("/predict", params={"top_k": 1}, content=self.image)
        except httpx.TransportError as error:
            return f"It does not respond ({type(error).__name__})."
        if response.status_code in _TRANSIENT:
            return f"/predict responds with status {response.status_code}."
        self._expect_ok("/predict", response)
        _expect_prediction(response)
        return None

    def _expect_ok(self, path: str, response: httpx.Response) -> None:
        if response.status_code == 200:
            return
        hint = f": set {self.key_variable} to one of its VIT_API_API_KEYS" if response.status_code == 401 else ""
        raise SmokeFailure(
            f"{path} responds with status {response.status_code} ({_json(response).get('code', 'no code')}){hint}."
        )


def _expect_prediction(response: httpx.Response) -> None:
    try:
        (prediction,) = _json(response)["predictions"]
        is_right = bool(prediction["label"]) and 0 < float(prediction["confidence"]) <= 1
    except (KeyError, TypeError, ValueError):
        is_right = False
    if not is_right:
        raise SmokeFailure("/predict responds with status 200, but not with one label and its probability.")


def _json(response: httpx.Response) -> Mapping[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
