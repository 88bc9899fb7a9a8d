"""Cross-origin requests: tells browsers whose pages may use this server. Knows nothing of what the server does."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from vit_api.errors import BadRequest
from vit_api.web.responses import NO_SNIFFING, REQUEST_ID, error_body, to_json

_METHODS = ("GET", "HEAD", "POST")
_EXPOSED = (
    "x-request-id",
    "x-cache",
    "x-queue-time-ms",
    "x-inference-time-ms",
    "x-batch-size",
    "inference-header-content-length",
    "server-timing",
    "retry-after",
    "ratelimit-limit",
    "ratelimit-policy",
    "ratelimit-remaining",
    "ratelimit-reset",
    "www-authenticate",
)


class CrossOrigin(CORSMiddleware):
    """Answer browsers' questions before a request (preflights), and mark every other answer; see Fetch, section 3.2.

    It is outermost, so that a page's script can read errors, too, and a preflight, which never has a key, needs none.
    Cookies and HTTP logins are never allowed (`Access-Control-Allow-Credentials`): a page has to have a key of its
    own to send, and can't use its visitor's. So any request header may come.

    Args:
        app: What answers the requests.
        origins: Whose pages may ask; `*`: all.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app, allow_origins=origins, allow_methods=_METHODS, allow_headers=["*"], expose_headers=_EXPOSED
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight; a refusal has the one form that errors have."""
        answer = super().preflight_response(request_headers)
        request_id = uuid.uuid4().hex
        if answer.status_code == BadRequest.status:
            error = BadRequest("this server takes no such request from a page of this origin")
            headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
            body = to_json(error_body(error, request_id))
            answer = Response(body, error.status, headers, media_type="application/json")
        for name, value in (NO_SNIFFING, (REQUEST_ID, request_id.encode())):
            answer.headers[name.decode()] = value.decode()
        return answer
