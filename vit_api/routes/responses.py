"""Responses: JSON bodies, and the one place where a failure becomes HTTP."""

from __future__ import annotations

import json
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from vit_api.errors import BadRequest, InternalError, MethodNotAllowed, NotFound, ViTError

REQUEST_ID = "x-request-id"


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `body` as compact JSON."""
    content = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    return Response(content, status, headers, media_type="application/json")


def error_body(error: ViTError, request_id: str) -> dict[str, str]:
    """Return the body that tells a client of a failure; the same everywhere."""
    return {"error": error.message, "code": error.code, "request_id": request_id}


def error_response(error: ViTError, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """Return the response that tells a client of a failure."""
    headers = dict(headers or {})
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    return json_response(error_body(error, request_id), error.status, headers)


def from_exception(request: Request, error: Exception) -> Response:
    """Word whatever a route of FastAPI's raised, such as an unknown path, as one of our failures."""
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else None
    return error_response(_worded(request, error), request.state.request_id, headers)


def _worded(request: Request, error: Exception) -> ViTError:
    if isinstance(error, ViTError):
        return error
    status = getattr(error, "status_code", 400 if isinstance(error, RequestValidationError) else 500)
    if status == NotFound.status:
        return NotFound(f"there is no {request.url.path} here; /docs lists what there is")
    if status == MethodNotAllowed.status:
        return MethodNotAllowed(f"{request.url.path} doesn't take {request.method}; /docs says what it takes")
    if status < InternalError.status:
        return BadRequest("the request can't be understood; /docs says what the server takes")
    return InternalError("the server failed; its log says why")
