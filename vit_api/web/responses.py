"""The one place where a failure becomes HTTP."""

from __future__ import annotations

import starlette.responses
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match, Route

from vit_api.errors import BadRequest, InternalError, MethodNotAllowed, NotFound, ViTError
from vit_api.web.requests import Response, to_json


def error_body(error: ViTError, request_id: str) -> dict[str, str]:
    """Return the body that tells a client of a failure; the same everywhere."""
    return {"error": error.message, "code": error.code, "request_id": request_id}


def error_response(error: ViTError, request_id: str, seconds: float) -> Response:
    """Return the response that tells a client of a failure, and how long it took, as W3C's Server Timing words it."""
    headers = [(name.encode(), value.encode()) for name, value in error.headers().items()]
    headers.append((b"server-timing", b"total;dur=%.3f" % (seconds * 1000)))
    return Response(error.status, to_json(error_body(error, request_id)), headers, (error,))


def from_exception(request: Request, error: Exception) -> starlette.responses.Response:
    """Word whatever a route of FastAPI's raised, such as an unknown path, as one of our failures."""
    ours = _worded(request, error)
    theirs = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if isinstance(ours, MethodNotAllowed):
        theirs["Allow"] = ", ".join(_methods(request)) or theirs.get("Allow", "")
    return starlette.responses.Response(
        to_json(error_body(ours, request.state.request_id)),
        ours.status,
        theirs | ours.headers(),
        media_type="application/json",
    )


def _methods(request: Request) -> list[str]:
    """Return all methods that a path takes; starlette tells those of one route alone, and a path may have several."""
    routes = [route for route in request.app.state.routes if isinstance(route, Route)]
    matching = [route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    same = [route for route in routes if route.path in matching[:1]]  # others may match by a wildcard
    return sorted({method for route in same for method in route.methods or ()})


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
