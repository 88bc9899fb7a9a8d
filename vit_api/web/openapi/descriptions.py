"""What the OpenAPI descriptions of the classification paths have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_api.web.openapi.schemas import ErrorResponse

FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request, a parameter or the image is malformed or empty"},
    408: {"model": ErrorResponse, "description": "The body did not arrive within the time limit"},
    413: {"model": ErrorResponse, "description": "The upload or the image's dimensions exceed the maximum"},
    415: {"model": ErrorResponse, "description": "The upload is not an image of a supported format"},
    500: {"model": ErrorResponse, "description": "Internal error; the server's log has the details"},
    503: {"model": ErrorResponse, "description": "Overloaded or not ready; `Retry-After` says when to retry"},
    504: {"model": ErrorResponse, "description": "The request was not answered within the time limit"},
}

_HEADERS = {
    "x-cache": ("string", "hit: from the cache; miss: computed; coalesced: shared with an identical upload in flight"),
    "x-request-id": ("string", "The request's own ID if valid, otherwise a generated one"),
    "x-queue-time-ms": ("number", "Time in the queue until the batch started"),
    "x-inference-time-ms": ("number", "Time that the batch took"),
    "x-batch-size": ("integer", "Images in the batch"),
    "preference-applied": ("string", "The preference `wait`, if the request has one"),
}
_BATCH_HEADERS = {
    "x-queue-times-ms": (
        "string",
        "Time of each image in the queue, in their order; `-` if it was not computed",
    ),
    "x-inference-times-ms": ("string", "Time of each image's batch"),
    "x-batch-sizes": ("string", "Images in each image's batch"),
    "x-request-id": _HEADERS["x-request-id"],
    "preference-applied": _HEADERS["preference-applied"],
}


def _answer_with(headers: Mapping[str, tuple[str, str]]) -> dict[int | str, dict[str, Any]]:
    described = {name: {"schema": {"type": kind}, "description": what} for name, (kind, what) in headers.items()}
    return {200: {"headers": described}}


ANSWER = _answer_with(_HEADERS)
BATCH_ANSWER = _answer_with(_BATCH_HEADERS)

FILE = {"type": "string", "format": "binary", "description": "An image file"}

URGENCY: tuple[dict[str, Any], ...] = (
    {
        "name": "Priority",
        "in": "header",
        "description": "RFC 9218: from `u=4` to `u=7` the request is of low urgency; others come first",
        "schema": {"type": "string", "default": "u=3"},
    },
    {
        "name": "Prefer",
        "in": "header",
        "description": "RFC 7240: after so many seconds, as in `wait=2`, the request fails with a 504",
        "schema": {"type": "string"},
    },
)
"""Header fields that all paths that classify take."""


def refusal_of(operation: dict[str, Any], description: str) -> dict[str, Any]:
    """Describe a response of an operation that is an error, in the form of its other errors."""
    malformed = operation["responses"].get("400", {})
    content = malformed.get("content", {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}})
    return {"description": description, "content": content}
