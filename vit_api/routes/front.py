"""The ASGI entry of an HTTP process: gives each request its id, and the busy paths a short way.

`/predict` and its like are answered by plain handlers; everything else goes through FastAPI. Knows nothing of what a
handler does.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vit_api.errors import InternalError, ViTError
from vit_api.routes.responses import REQUEST_ID, error_response

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_REQUEST_ID_BYTES = REQUEST_ID.encode()


class Front:
    """Route a request to its handler, and answer what the handler raises.

    Args:
        handlers: The busy paths, by method and path.
        fallback: Answers everything else.
    """

    def __init__(self, handlers: Mapping[tuple[str, str], Handler], fallback: ASGIApp) -> None:
        self._handlers = handlers
        self._fallback = fallback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            await self._fallback(scope, receive, send)
            return
        request_id = _request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        handler = self._handlers.get((scope["method"], scope["path"]))
        if handler is None:
            await self._fallback(scope, receive, _with_request_id(send, request_id))
            return
        try:
            response = await respond(handler, Request(scope, receive))
        except ClientDisconnect:
            return
        response.raw_headers.append((_REQUEST_ID_BYTES, request_id.encode()))
        await response(scope, receive, send)


async def respond(handler: Handler, request: Request) -> Response:
    """Return the handler's response, or the one that tells of its failure.

    Raises:
        ClientDisconnect: The client left while it sent its body: nobody is there to answer.
    """
    try:
        return await handler(request)
    except ViTError as error:
        return error_response(error, request.state.request_id)
    except ClientDisconnect:
        raise
    except Exception:
        logger.exception("request %s failed in an unforeseen way", request.state.request_id)
        return error_response(InternalError("the server failed; its log says why"), request.state.request_id)


def _request_id_of(scope: Scope) -> str:
    """Return the client's own id for its request if it is sane, else a new one."""
    for name, value in scope["headers"]:
        if name == _REQUEST_ID_BYTES:
            if _SANE_ID.fullmatch(value):
                return str(value.decode())
            break
    return uuid.uuid4().hex


def _with_request_id(send: Send, request_id: str) -> Send:
    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (_REQUEST_ID_BYTES, request_id.encode())]
            message = {**message, "headers": headers}
        await send(message)

    return send_with_id
