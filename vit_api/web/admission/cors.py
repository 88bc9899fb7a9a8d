"""CORS: tells browsers which origins may use this server. Knows nothing of the routes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers as StarletteHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from vit_api.errors import BadRequest
from vit_api.web.requests import Headers, Request
from vit_api.web.responses import NO_SNIFFING, REQUEST_ID, error_body, to_json

_METHODS = ("GET", "HEAD", "POST")
_EXPOSED = (
    "x-request-id",
    "x-cache",
    "x-queue-time-ms",
    "x-inference-time-ms",
    "x-batch-size",
    "x-queue-times-ms",
    "x-inference-times-ms",
    "x-batch-sizes",
    "inference-header-content-length",
    "server-timing",
    "preference-applied",
    "retry-after",
    "x-compute-type",
    "x-compute-time",
    "x-total-time",
    "x-queue-time",
    "x-inference-time",
    "link",
    "ratelimit",
    "ratelimit-limit",
    "ratelimit-policy",
    "ratelimit-remaining",
    "ratelimit-reset",
    "www-authenticate",
)
_VARY: Headers = ((b"vary", b"Origin"),)


class CrossOrigin(CORSMiddleware):
    """Answer preflight requests, and add CORS headers to all other responses; see Fetch, section 3.2.

    This is the outermost middleware: scripts can read errors too, and a preflight, which never carries a key, needs
    none. Credentials are never allowed (`Access-Control-Allow-Credentials`), so a page can't act with its visitor's
    cookies or HTTP login and has to send a key itself. That makes it safe to allow any request header.

    Args:
        app: The wrapped application.
        origins: The allowed origins; `*` allows all.
        exposed: Headers that scripts can read, besides those of every server.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str], exposed: Sequence[str] = ()) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=["*"],
            expose_headers=[*_EXPOSED, *exposed],
        )
        self._simple = tuple((name.lower().encode(), value.encode()) for name, value in self.simple_headers.items())

    def answer_headers(self, request: Request) -> Headers:
        """Return the headers that let a page read the answer to its request; as `send` adds them for ASGI."""
        origin = request.headers.get(b"origin")
        if origin is None:
            return _VARY
        if self.allow_all_origins or not self.is_allowed_origin(origin.decode("latin-1")):
            return (*self._simple, *_VARY)
        return (*self._simple, (b"access-control-allow-origin", origin), *_VARY)

    def preflight_response(self, request_headers: StarletteHeaders) -> Response:
        """Answer a preflight; a refusal is an error response like any other."""
        answer = super().preflight_response(request_headers)
        request_id = uuid.uuid4().hex
        if answer.status_code == BadRequest.status:
            error = BadRequest("The origin or method is not allowed. Send the request from an allowed origin.")
            headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
            body = to_json(error_body(error, request_id))
            answer = Response(body, error.status, headers, media_type="application/json")
        for name, value in (NO_SNIFFING, (REQUEST_ID, request_id.encode())):
            answer.headers[name.decode()] = value.decode()
        return answer
