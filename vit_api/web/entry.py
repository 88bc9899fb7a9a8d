"""The entry of an HTTP process: gives each request its id, and finds its route.

The door has requests of hot routes answered; all others go through FastAPI.

Knows nothing of what a handler does.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vit_api.errors import NotFound, ViTError
from vit_api.metrics import CLIENT_LEFT
from vit_api.web.admission.keys import PROBES
from vit_api.web.hot_calls import CallContext, HotCall
from vit_api.web.observers.exchange import Exchange, HitObserver, Releasing
from vit_api.web.paths import plain_path
from vit_api.web.repeats import Generation
from vit_api.web.requests import Request
from vit_api.web.responses import NO_SNIFFING, REQUEST_ID, Response, error_response
from vit_api.web.routes import HotRoute

logger = logging.getLogger(__name__)

_VALID_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_METHODS = b"GET, HEAD, POST, OPTIONS"
_MALFORMED = {"method": "-", "path": "-", "query_string": b"", "headers": [], "scheme": "http"}
"""What is known of a request whose head is malformed."""


class Entry:
    """Route each request to its handler.

    Args:
        hot_routes: The routes that the door has answered.
        fallback: Answers everything else.
        context: Admits requests, and records their outcomes.
    """

    def __init__(self, hot_routes: Sequence[HotRoute], fallback: ASGIApp, context: CallContext) -> None:
        self._hot = {(route.method, route.path): route for route in hot_routes}
        self._fallback = fallback
        self._context = context
        # As unique as a random number and much cheaper: random for each process, and counted within it.
        start = os.urandom(12).hex().encode()
        self._ids = (b"%s%08x" % (start, number) for number in itertools.count())
        self._generation = self._new_generation()

    def serve(self, hot_routes: Sequence[HotRoute], fallback: ASGIApp) -> None:
        """Answer the next requests by these routes; those in flight keep theirs."""
        self._hot = {(route.method, route.path): route for route in hot_routes}
        self._fallback = fallback
        self._generation.end()
        self._generation = self._new_generation()

    def _new_generation(self) -> Generation:
        observers = self._context.observers
        counting = [one for one in observers if isinstance(one, HitObserver)]
        others = [one for one in observers if not isinstance(one, HitObserver)]
        return Generation(self._ids, counting, others, [one for one in observers if isinstance(one, Releasing)])

    def open(self, scope: dict[str, Any]) -> HotCall | None:
        """Return a request of a hot route; None for all others."""
        route = self._hot.get((scope["method"], scope["path"]))
        if route is None:
            plain = plain_path(scope["path"])
            route = None if plain is None else self._hot.get((scope["method"], plain))
            if route is None:
                return None
            scope["path"] = plain  # a redirect would make the client send its image twice
        return HotCall(self._request(scope, route.endpoint), route, self._context, self._generation)

    def refuse(self, scope: dict[str, Any]) -> HotCall:
        """Return a request that can only fail."""
        return HotCall(self._request(_MALFORMED | scope, ""), None, self._context)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope: have FastAPI answer."""
        if scope["type"] != "http":
            await self._fallback(scope, receive, send)
            return
        plain = plain_path(scope["path"])
        if plain in PROBES:  # load balancers don't follow redirects
            scope = {**scope, "path": plain}
        request = self._request(scope, "")
        if scope["path"] == "*":  # OPTIONS for the server as a whole; RFC 9110, section 9.3.7
            await self._respond(Response(204, b"", ((b"allow", _METHODS),)), request, send)
            return
        try:
            if self._context.check_key is not None:
                self._context.check_key(request)
            if not request.path.isprintable():  # FastAPI would ignore a line break at the end of a path
                raise NotFound("There is no such path. See /docs for the paths that there are.")
        except ViTError as error:
            await self._respond(error_response(error, request), request, send)
            return
        await self._fall_back(request, receive, send)

    async def _respond(self, response: Response, request: Request, send: Send) -> None:
        await response.send(send, request)
        self._context.observe(Exchange(request, response.status, time.monotonic(), response.outcomes))

    def _request(self, scope: dict[str, Any] | Scope, endpoint: str) -> Request:
        request = Request(
            scope,
            next(self._ids),
            arrived_at=time.monotonic(),
            timeout_s=self._context.timeout_s,
            endpoint=endpoint,
            addresses=self._context.addresses,
            work=self._context.work,
        )
        client_id = request.headers.get(REQUEST_ID)
        if client_id is not None and _VALID_ID.fullmatch(client_id):
            request.id = client_id
        return request

    async def _fall_back(self, request: Request, receive: Receive, send: Send) -> None:
        """Have FastAPI answer; HEAD as GET, whose body the server leaves out (RFC 9110, section 9.3.2)."""
        status = CLIENT_LEFT

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), NO_SNIFFING, (REQUEST_ID, request.id)]
                message = {**message, "headers": headers}
            await send(message)

        request.scope.setdefault("state", {})["request_id"] = request.id.decode()
        scope = request.scope
        if request.method == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._fallback(scope, receive, send_with_id)
        request.scope["route"] = scope.get("route")  # for observers
        self._context.observe(Exchange(request, status, time.monotonic()))
