"""The ASGI entry of an HTTP process: gives each request its id, and answers the hot routes.

Everything else goes through FastAPI. Knows nothing of what a handler does.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vit_api.errors import InternalError, NotFound, ViTError
from vit_api.metrics import CLIENT_LEFT
from vit_api.web.bodies import BodyReader
from vit_api.web.eager import EagerStart
from vit_api.web.hang_ups import unless_gone
from vit_api.web.observers.exchange import Exchange, Observer
from vit_api.web.requests import Request, RequestLimits
from vit_api.web.responses import NO_SNIFFING, REQUEST_ID, Response, error_response
from vit_api.web.routes import HotRoute

logger = logging.getLogger(__name__)

_VALID_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Entry:
    """Route each request to its handler, and answer what the handler raises.

    Args:
        hot_routes: The routes that are answered here.
        fallback: Answers everything else.
        observers: Told of each answered request.
        limits: The memory and the time that requests may take.
        is_draining: Returns whether the server is shutting down, so that clients should disconnect.
        check_key: Raises a `ViTError` if a request has no valid key.
        charge: Raises a `ViTError` if the client of a hot route's request has used up its rate limit.
    """

    def __init__(
        self,
        hot_routes: Sequence[HotRoute],
        fallback: ASGIApp,
        observers: Sequence[Observer],
        *,
        limits: RequestLimits,
        is_draining: Callable[[], bool],
        check_key: Callable[[Request], None] | None = None,
        charge: Callable[[Request], Awaitable[None]] | None = None,
    ) -> None:
        self._hot = {(route.method, route.path): route for route in hot_routes}
        self._fallback = fallback
        self._observers = observers
        self._timeout_s = limits.request_timeout_s
        self._bodies = BodyReader(limits)
        self._is_draining = is_draining
        self._check_key = check_key
        self._charge = charge
        # As unique as a random number and much cheaper: random for each process, and counted within it.
        self._id_start = os.urandom(12).hex().encode()
        self._id_numbers = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            await self._fallback(scope, receive, send)
            return
        route = self._hot.get((scope["method"], scope["path"]))
        request = Request(
            scope,
            b"%s%08x" % (self._id_start, next(self._id_numbers)),
            arrived_at=time.monotonic(),
            timeout_s=self._timeout_s,
            endpoint="" if route is None else route.endpoint,
        )
        response: Response | None = None
        client_id = request.headers.get(REQUEST_ID)
        if client_id is not None and _VALID_ID.fullmatch(client_id):
            request.id = client_id
        try:
            if self._check_key is not None:
                self._check_key(request)
            if route is not None:
                response = await self._answer(route, request, receive)
            elif not request.path.isprintable():  # FastAPI would ignore a line break at the end of a path
                raise NotFound("There is no such path. See /docs for the paths that there are.")
        except ClientDisconnect:
            self._observe(Exchange(request, CLIENT_LEFT, time.monotonic()))
            return
        except Exception as error:
            failure = error if isinstance(error, ViTError) else _unexpected(request.id)
            response = error_response(failure, request.id.decode(), time.monotonic() - request.timeline.arrived_at)
        finally:
            self._bodies.release(request)
        if response is None:
            await self._fall_back(request, receive, send)
            return
        await response.send(send, request, is_last=self._is_draining())
        self._observe(Exchange(request, response.status, time.monotonic(), response.outcomes))

    async def _answer(self, route: HotRoute, request: Request, receive: Receive) -> Response:
        if self._charge is not None:
            await self._charge(request)  # before the body is read, so that a refused upload costs nothing
        await self._bodies.read(request, receive, route.body_limit(request))
        handling = EagerStart(route.handler(request))
        return handling.result if handling.is_done else await unless_gone(handling.finish(), receive)

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


def _unexpected(request_id: bytes) -> ViTError:
    """Log the exception that is being handled."""
    logger.exception("request %s failed unexpectedly", request_id.decode())
    return InternalError("The server failed. Its log says why.")
