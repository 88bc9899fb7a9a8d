"""Calls to the Hugging Face hub: their failures, their time limit, and the token. Must not know Spaces or Endpoints.

Uses `huggingface_hub` 2.4. Every failed call raises `HubError`; no message contains a token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import get_session, get_token

ANSWER_S = 60.0
"""Timeout of a request. The library sets none, and would wait forever for a hub that stopped responding."""

_EXCHANGE = "/oauth/token"
_TOO_MANY = 429


class HubError(Exception):
    """The hub rejected a call or did not respond.

    Attributes:
        is_transient: Whether the same call may succeed later.
    """

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class UncertainChangeError(HubError):
    """The hub did not respond, so the change may or may not have been made."""


@dataclass(frozen=True)
class Login:
    """Who calls the hub.

    Attributes:
        token: A token for all calls; None for one that `huggingface_hub` gets for the job that runs this, by the hub's
            trusted publishers, and renews before it expires.
    """

    token: str | None

    def current_token(self) -> str:
        """Return a token that is valid now.

        Raises:
            HubError: The hub does not trust this job.
        """
        if self.token is not None:
            return self.token
        with explaining("Space"):
            return get_token() or ""


def login(environment: Mapping[str, str], resource: str | None) -> Login:
    """Return who calls the hub: by `HF_OIDC_RESOURCE` without a stored token, or else by `HF_TOKEN`.

    Args:
        environment: The environment variables.
        resource: The repository that is changed, such as `spaces/organisation/name`; None for what only a stored token
            can change.

    Raises:
        HubError: Neither is set, or `HF_OIDC_RESOURCE` is of another repository.
    """
    named, token = environment.get("HF_OIDC_RESOURCE", ""), environment.get("HF_TOKEN", "")
    if named and resource is not None:
        if named != resource:
            raise HubError(f"HF_OIDC_RESOURCE is {named}: set it to {resource}.", is_transient=False)
        return Login(None)
    if not token:
        keyless = f", or set HF_OIDC_RESOURCE to {resource}" if resource else ""
        raise HubError(f"HF_TOKEN is not set: set it to a token with write access{keyless}.", is_transient=False)
    return Login(token)


@contextlib.contextmanager
def explaining(subject: str, *, changes: bool = False) -> Iterator[None]:
    """Limit the time of the calls within, and turn any exception of the library into a `HubError`.

    Args:
        subject: What the calls are about, for messages: `Space`.
        changes: Whether the calls change it, so that one without a response raises `UncertainChangeError`.
    """
    get_session().timeout = ANSWER_S
    try:
        yield
    except Exception as error:  # its own, its HTTP client's, and ValueError for a bad README
        explained = _explain(error, subject)
        if changes and explained.is_transient and _status(error) != _TOO_MANY:
            text = f"The change may or may not have been made. {explained}"
            explained = UncertainChangeError(text, is_transient=True)
        raise explained from error


def _status(error: Exception) -> int | None:
    return getattr(_response(error), "status_code", None)


def _response(error: Exception) -> Any:
    """Return the hub's response that caused the error, or None."""
    return getattr(error, "response", None)


def _explain(error: Exception, subject: str) -> HubError:
    status = _status(error)
    said = str(getattr(error, "server_message", None) or error).strip()
    if status is None:
        is_transient = isinstance(error, OSError) or "httpx" in type(error).__module__
        # Only the type of the cause: its text may contain an upload's signed URL.
        kind = type(error.__cause__ or error).__name__
        return HubError(f"{said} ({kind}).", is_transient=is_transient)
    first = said.splitlines()[0]
    if status < 500 and _response(error).url.path == _EXCHANGE:
        hint = f"add this repository and workflow to the {subject}'s trusted publishers"
        return HubError(f"The hub gives this job no token (status {status}, {first}): {hint}.", is_transient=False)
    if status in (401, 403, 404):
        hint = f"check the {subject}'s name, and that HF_TOKEN is valid and has write access"
        return HubError(f"The hub responded with status {status}: {hint} ({first}).", is_transient=False)
    if status == 412:
        return HubError(
            f"The {subject} has a newer commit than expected: another client pushed to it.", is_transient=False
        )
    return HubError(
        f"The hub responded with status {status} ({first}).", is_transient=status >= 500 or status == _TOO_MANY
    )
