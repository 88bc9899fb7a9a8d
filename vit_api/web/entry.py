"""The ASGI entry of an HTTP process: gives each request its id, and the busy paths a short way.

`/predict` and its like are answered by plain handlers; everything else goes through FastAPI. Knows nothing of what a
handler does.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vit_api.errors import InternalError, NotFound, ViTError
from vit_api.metrics import CLIENT_LEFT
from vit_api.web.observers.exchange import Exchange, Observer
from vit_api.web.requests import NO_SNIFFING, REQUEST_ID, Pending, Request, Response
from vit_api.web.responses import error_response

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class HotRoute(NamedTuple):
    """A path that classifies.

    Attributes:
        method: The HTTP method.
        path: The path.
        endpoint: What the metrics call it; one of `metrics.ENDPOINTS`.
        handler: Answers its requests.
    """

    method: str
    path: str
    endpoint: str
    handler: Handler


_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Entry:
    """Route a request to its handler, and answer what the handler raises.

    Args:
        busy: The paths that are answered here.
        fallback: Answers everything else.
        observers: Told of each request that has its answer.
        max_pending_bytes: Of all requests' bodies together at the most.
        is_draining: Tells whether the server stops, so that clients are to leave.
        admit: Raises a `ViTError` if a request is not to be answered, before any of its body is read.
    """

    def __init__(
        self,
        busy: Sequence[HotRoute],
        fallback: ASGIApp,
        observers: Sequence[Observer],
        *,
        max_pending_bytes: int,
        is_draining: Callable[[], bool],
        admit: Callable[[Request], None] | None = None,
    ) -> None:
        self._busy = {(path.method, path.path): path for path in busy}
        self._fallback = fallback
        self._observers = observers
        self._pending = Pending(max_pending_bytes)
        self._is_draining = is_draining
        self._admit = admit
        # Unique as a random number, at a tenth of the time: random for each process, and counted within it.
        self._id_start = os.urandom(12).hex().encode()
        self._id_numbers = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            await self._fallback(scope, receive, send)
            return
        new_id = b"%s%08x" % (self._id_start, next(self._id_numbers))
        request = Request(scope, receive, new_id, self._pending, time.monotonic())
        own_id = request.headers.get(REQUEST_ID)
        if own_id is not None and _SANE_ID.fullmatch(own_id):
            request.id = own_id
        path = self._busy.get((scope["method"], scope["path"]))
        if path is not None:
            request.endpoint = path.endpoint
        try:
            if self._admit is not None:
                self._admit(request)
            if path is None and not scope["path"].isprintable():  # FastAPI would take a line break at its end for none
                raise NotFound("there is no such path here; /docs lists what there is")
            response = None if path is None else await path.handler(request)
        except ClientDisconnect:
            self._observe(Exchange(request, CLIENT_LEFT, time.monotonic()))
            return  # nobody is there to answer
        except Exception as error:
            failure = error if isinstance(error, ViTError) else _unforeseen(request.id)
            response = error_response(failure, request.id.decode(), time.monotonic() - request.arrived_at)
        finally:
            request.close()
        if response is None:
            await self._fall_back(request, receive, send)
            return
        await response.send(send, request, is_last=self._is_draining())
        self._observe(Exchange(request, response.status, time.monotonic(), response.outcomes))

    async def _fall_back(self, request: Request, receive: Receive, send: Send) -> None:
        """Have FastAPI answer."""
        status = CLIENT_LEFT

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), NO_SNIFFING, (REQUEST_ID, request.id)]
                message = {**message, "headers": headers}
            await send(message)

        request.scope.setdefault("state", {})["request_id"] = request.id.decode()
        await self._fallback(request.scope, receive, send_with_id)
        self._observe(Exchange(request, status, time.monotonic()))

    def _observe(self, exchange: Exchange) -> None:
        for observer in self._observers:
            observer.observe(exchange)


def _unforeseen(request_id: bytes) -> ViTError:
    """Log the exception that is being handled."""
    logger.exception("request %s failed in an unforeseen way", request_id.decode())
    return InternalError("the server failed; its log says why")
