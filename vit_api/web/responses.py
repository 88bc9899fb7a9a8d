"""Responses as the hot routes make them; the only place where a failure becomes HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pydantic_core
import starlette.requests
import starlette.responses
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import Send

from vit_api.errors import BadRequest, InternalError, MethodNotAllowed, NotFound, ViTError
from vit_api.web.paths import plain_path, relative_location
from vit_api.web.problem_details import PROBLEM_JSON, prefers_problem, problem_of
from vit_api.web.requests import Headers, Request

REQUEST_ID = b"x-request-id"
NO_SNIFFING: tuple[bytes, bytes] = (b"x-content-type-options", b"nosniff")
"""Makes browsers trust the content type, and never take a body for a script or a page."""

_JSON = b"application/json"
_LINES = b"content-type: %b\r\n" + b"%b: %b\r\n" % NO_SNIFFING + b"content-length: %d\r\n%b" + REQUEST_ID + b": %b\r\n"
"""The lines of content type, content length, other headers, and request id."""


class Response(NamedTuple):
    """One HTTP response.

    Attributes:
        status: The HTTP status.
        body: Usually JSON.
        headers: Besides content type and length, which are always sent.
        outcomes: What became of each image, for observers.
        content_type: The content type of the body.
    """

    status: int
    body: bytes
    headers: Headers = ()
    outcomes: Sequence[Any] = ()
    content_type: bytes = _JSON

    def header_lines(self, request: Request) -> bytes:
        """Return every header to send in response to a request, a line each."""
        own = self.headers if not request.admission.headers else (*self.headers, *request.admission.headers)
        return _LINES % (self.content_type, len(self.body), header_lines(own), request.id)

    async def send(self, send: Send, request: Request) -> None:
        """Send it over ASGI in response to a request."""
        lines = self.header_lines(request).splitlines()
        headers = [tuple(line.split(b": ", 1)) for line in lines]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def header_lines(headers: Headers) -> bytes:
    """Return headers as lines."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def to_json(body: Any) -> bytes:
    """Return compact JSON. Its numbers must be finite, as a worker's answers are."""
    return pydantic_core.to_json(body)  # takes a sixth of the time of `json`, and a tenth for an embedding


def error_body(error: ViTError, request_id: str) -> dict[str, str]:
    """Return the body of an error response; it has the same form everywhere."""
    return {"error": error.message, "code": error.code, "request_id": request_id}


def error_response(error: ViTError, request: Request) -> Response:
    """Return the response for a request that failed, with the time that it took in `Server-Timing` (W3C)."""
    headers = [(name.encode(), value.encode()) for name, value in error.headers().items()]
    headers.append((b"server-timing", b"total;dur=%.3f" % request.elapsed_ms))
    body, content_type = _error_content(error, request.id.decode(), request.headers.get(b"accept", b""))
    return Response(error.status, body, headers, (error,), content_type)


def _error_content(error: ViTError, request_id: str, accept: bytes) -> tuple[bytes, bytes]:
    """Return the body of an error response and its content type: problem details for those who ask for them."""
    body = error_body(error, request_id)
    if prefers_problem(accept):
        return to_json(problem_of(error, body)), PROBLEM_JSON
    return to_json(body), _JSON


def from_exception(request: starlette.requests.Request, error: Exception) -> starlette.responses.Response:
    """Return the response for an exception of FastAPI's routes, such as an unknown path."""
    # A handler's own failure says nothing of paths and methods, so only the router's are looked up.
    allowed = [] if isinstance(error, ViTError) else _methods(request)
    ours = _to_failure(request, error, is_wrong_method=bool(allowed) and request.method not in allowed)
    if isinstance(ours, (NotFound, MethodNotAllowed)) and _is_mistyped(request):
        # A client that follows it sends the same method and body again; RFC 9110, section 15.4.9.
        location = relative_location(request.scope["raw_path"], request.scope["query_string"])
        return starlette.responses.Response(status_code=308, headers={"location": location.decode("ascii")})
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if isinstance(ours, MethodNotAllowed):
        headers["Allow"] = ", ".join(allowed)
    accept = request.headers.get("accept", "").encode("latin-1")
    body, content_type = _error_content(ours, request.state.request_id, accept)
    return starlette.responses.Response(
        body, ours.status, headers | ours.headers(), media_type=content_type.decode("ascii")
    )


def _is_mistyped(request: starlette.requests.Request) -> bool:
    """Return whether a path would have a route if its empty segments were left out."""
    plain = plain_path(request.scope["path"])
    if plain is None:
        return False
    scope = {**request.scope, "path": plain}
    routes = [route for route in request.app.state.routes if isinstance(route, Route)]
    return any(route.matches(scope)[0] is not Match.NONE for route in routes)


def _methods(request: starlette.requests.Request) -> list[str]:
    """Return all methods that a path takes, hot routes included; starlette knows those of one route only."""
    routes = [route for route in request.app.state.routes if isinstance(route, Route)]
    matching = [route.path for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    same = [route for route in routes if route.path in matching[:1]]  # others may match by a wildcard
    return sorted({method for route in same for method in route.methods or ()})


def _to_failure(request: starlette.requests.Request, error: Exception, *, is_wrong_method: bool) -> ViTError:
    if isinstance(error, ViTError):
        return error
    path = request.url.path
    status = getattr(error, "status_code", 400 if isinstance(error, RequestValidationError) else 500)
    if status == MethodNotAllowed.status or (status == NotFound.status and is_wrong_method):
        return MethodNotAllowed(f"{path} does not support {request.method}. See /docs for the methods that it does.")
    if status == NotFound.status:
        return NotFound(f"There is no path {path}. See /docs for the paths that there are.")
    if status < InternalError.status:
        return BadRequest("The request is malformed. See /docs for what the server accepts.")
    return InternalError("The server failed. Its log says why.")
