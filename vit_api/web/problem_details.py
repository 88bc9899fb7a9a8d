"""Problem details for HTTP APIs, RFC 9457: the form of an error that a client asks for in `Accept`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from vit_api.errors import ViTError

PROBLEM_JSON = b"application/problem+json"
_JSON = b"application/json"


def prefers_problem(accept: bytes) -> bool:
    """Return whether an `Accept` header names problem details, and ranks plain JSON no higher."""
    if PROBLEM_JSON not in accept.lower():
        return False
    weights = dict(map(_weighted, accept.lower().split(b",")))
    weight = weights.get(PROBLEM_JSON, 0.0)
    return weight > 0 and weight >= weights.get(_JSON, 0.0)


def problem_of(error: ViTError, body: dict[str, str]) -> dict[str, Any]:
    """Return a problem, with the members of every error's body as its extensions.

    Its type is `about:blank`, so its title is the status's phrase (section 4.2.1); programs switch on `code`.
    """
    standard = {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
    }
    return standard | body


def _weighted(item: bytes) -> tuple[bytes, float]:
    """Return a media range of `Accept` and its weight; RFC 9110, section 12.4.2."""
    media_type, *parameters = (part.strip() for part in item.split(b";"))
    for parameter in parameters:
        if parameter.startswith(b"q="):
            try:
                return media_type, float(parameter[2:])
            except ValueError:
                return media_type, 0.0
    return media_type, 1.0
