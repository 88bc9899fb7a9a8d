"""The application of an HTTP process: the entry, FastAPI behind it, and the description at /openapi.json."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.dependencies import models as dependency_models
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from vit_api import __version__
from vit_api.access.client_address import ClientAddresses
from vit_api.errors import ViTError
from vit_api.web.admission.cors import CrossOrigin
from vit_api.web.admission.keys import KeyCheck, describe_keys
from vit_api.web.admission.rate_limits import RateLimits, describe_limits
from vit_api.web.bodies import BodyMemory, BodyWork
from vit_api.web.entry import Entry
from vit_api.web.hot_calls import CallContext
from vit_api.web.observers.exchange import Observer
from vit_api.web.page.security_headers import STATIC_FOLDER, docs_router
from vit_api.web.requests import RequestLimits
from vit_api.web.responses import from_exception
from vit_api.web.routes import HotRoute, Route, described, matched

_TITLE = "ViT API"
_DESCRIPTION = "Image classification with a Vision Transformer. Every error has the same body; `code` is stable."
_SERVERS = [{"url": ".", "description": "The server of this description"}]  # relative, for proxies that add a prefix
_BY_PEER = ClientAddresses()


class WebApplication:
    """The application of one HTTP process.

    Args:
        entry: Opens requests.
        asgi: Answers all that are not of a hot route.
        fallback_of: Returns what answers all that are not of a hot route, given the table of routes.

    Attributes:
        entry: See above.
    """

    def __init__(self, entry: Entry, asgi: ASGIApp, fallback_of: Callable[[Sequence[Route]], FastAPI]) -> None:
        self.entry = entry
        self._asgi = asgi
        self._fallback_of = fallback_of

    def prepare(self, routes: Sequence[Route]) -> Callable[[], None]:
        """Return what serves another table of routes from then on; made in any thread, called on the event loop."""
        serve = functools.partial(self.entry.serve, _hot(routes), self._fallback_of(routes))
        _clear_caches_of_fastapi()
        return serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        await self._asgi(scope, receive, send)


def create_app(
    routes: Sequence[Route],
    observers: Sequence[Observer],
    *,
    start: Callable[[], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
    request_limits: RequestLimits,
    keys: KeyCheck | None = None,
    rate_limits: RateLimits | None = None,
    cors_origins: Sequence[str] = (),
    exposed_headers: Sequence[str] = (),
    addresses: ClientAddresses = _BY_PEER,
    work: BodyWork | None = None,
) -> WebApplication:
    """Return the application of one HTTP process.

    Args:
        routes: The table of routes, in the order of the description.
        observers: Told of each answered request.
        start: Called on the event loop before the first request.
        stop: Called on the event loop after the last one.
        request_limits: The memory and the time that requests may take.
        keys: Checks API keys; None: none are required.
        rate_limits: Limits the rate of each client; None: no limits.
        cors_origins: Origins whose pages may use the server; none: its own only.
        exposed_headers: Headers that these pages can read, besides those of every server.
        addresses: Identifies clients without a key by address.
        work: Works on long bodies; None: any thread does.
    """

    def fallback_of(routes: Sequence[Route]) -> FastAPI:
        app = _fastapi(routes, start, stop)
        app.openapi = _described_by(app, routes, keys, rate_limits)  # type: ignore[method-assign]
        return app

    app = fallback_of(routes)
    cross_origin = functools.partial(CrossOrigin, origins=cors_origins, exposed=exposed_headers)
    context = CallContext(
        BodyMemory(request_limits.max_pending_bytes),
        request_limits.request_timeout_s,
        observers,
        check_key=None if keys is None else keys.check,
        charge=None if rate_limits is None else rate_limits.charge,
        limits=rate_limits,
        cors_headers=cross_origin(app).answer_headers if cors_origins else None,
        addresses=addresses,
        work=work,
    )
    entry = Entry(_hot(routes), app, context)
    return WebApplication(entry, cross_origin(entry) if cors_origins else entry, fallback_of)


def _clear_caches_of_fastapi() -> None:
    """Let the functions of routes that are served no longer be freed, with all that they refer to."""
    for cached in vars(dependency_models).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


def _hot(routes: Sequence[Route]) -> list[HotRoute]:
    return [route for route in routes if isinstance(route, HotRoute)]


def _fastapi(
    routes: Sequence[Route], start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]
) -> FastAPI:
    """Return the application that answers every route but the hot ones."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await start()
        try:
            yield
        finally:
            await stop()

    app: FastAPI = FastAPIOffline(
        title=_TITLE,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        static_url=STATIC_FOLDER,
        redirect_slashes=False,
    )
    served: list[BaseRoute] = [route for route in routes if not isinstance(route, HotRoute)]
    docs = docs_router(_TITLE, "/openapi.json")
    app.include_router(docs)
    app.include_router(APIRouter(routes=served))
    app.state.routes = [*app.routes, *docs.routes, *matched(routes)]  # every method of every path, for `Allow`
    for kind in (HTTPException, RequestValidationError, ViTError, Exception):
        app.add_exception_handler(kind, from_exception)
    return app


def _described_by(
    app: FastAPI, routes: Sequence[Route], keys: KeyCheck | None, rate_limits: RateLimits | None
) -> Callable[[], dict[str, Any]]:
    """Return a function that makes the description when it is first requested."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(
                title=_TITLE,
                version=__version__,
                description=_DESCRIPTION,
                routes=described(routes),
                servers=_SERVERS,
            )
            describe_keys(app.openapi_schema, keys)
            if rate_limits is not None:
                describe_limits(app.openapi_schema)
        return app.openapi_schema

    return openapi
