"""What the paths that classify have in common in the API's description."""

from __future__ import annotations

from typing import Any

from vit_api.web.openapi.schemas import ErrorResponse

FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request, a parameter or the image is malformed or empty"},
    408: {"model": ErrorResponse, "description": "The body did not arrive within the time limit"},
    413: {"model": ErrorResponse, "description": "The upload has too many bytes, or the image too many pixels"},
    415: {"model": ErrorResponse, "description": "The upload is not an image of a known format"},
    500: {"model": ErrorResponse, "description": "The server failed; its log says why"},
    503: {"model": ErrorResponse, "description": "Overloaded or still starting; `Retry-After` says when to try again"},
    504: {"model": ErrorResponse, "description": "No answer within the time limit"},
}

_HEADERS = {
    "x-cache": ("string", "hit: remembered; miss: computed; coalesced: computed once for several identical uploads"),
    "x-request-id": ("string", "The request's own id if it has a sane one, else a new one"),
    "x-queue-time-ms": ("number", "From the queue's entry to the batch's start"),
    "x-inference-time-ms": ("number", "How long the batch took"),
    "x-batch-size": ("integer", "Images in the batch"),
}
ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"headers": {name: {"schema": {"type": kind}, "description": what} for name, (kind, what) in _HEADERS.items()}}
}

FILE = {"type": "string", "format": "binary", "description": "An image file"}
