"""The FastAPI application: every path, its description for `/openapi.json`, and `/docs` without an external host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from vit_api import __version__
from vit_api.errors import ViTError
from vit_api.web.admission.cors import CrossOrigin
from vit_api.web.admission.keys import KeyCheck, describe_keys
from vit_api.web.admission.rate_limits import RateLimits, describe_limits
from vit_api.web.entry import Entry, HotRoute
from vit_api.web.observers.exchange import Observer
from vit_api.web.page.security_headers import STATIC_FOLDER, docs_router
from vit_api.web.responses import from_exception

_DESCRIPTION = "Image classification with a Vision Transformer. Every error has the same body; `code` is stable."


class ProtocolRoutes(Protocol):
    """A way to ask for classifications: this server's own, or one that clients of others speak."""

    def hot_routes(self) -> Sequence[HotRoute]:
        """Return the paths that classify."""

    def router(self) -> APIRouter:
        """Return routes that describe these paths, and the protocol's other ones."""


def create_app(
    protocols: Sequence[ProtocolRoutes],
    operators: Sequence[APIRouter],
    observers: Sequence[Observer],
    *,
    start: Callable[[], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
    max_pending_bytes: int,
    is_draining: Callable[[], bool],
    keys: KeyCheck | None = None,
    limits: RateLimits | None = None,
    cors_origins: Sequence[str] = (),
) -> ASGIApp:
    """Return the ASGI application of one HTTP process.

    Args:
        protocols: The paths that classify.
        operators: Routes for operators.
        observers: Told of each request that has its answer.
        start: Called on the event loop before the first request.
        stop: Called on the event loop after the last one.
        max_pending_bytes: Of all requests' bodies together at the most.
        is_draining: Tells whether the server stops.
        keys: Who may ask for what; None: all for everything.
        limits: What each client may use; None: whatever it likes.
        cors_origins: Whose pages may use the server; none: its own alone.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await start()
        try:
            yield
        finally:
            await stop()

    app: FastAPI = FastAPIOffline(
        title="ViT API",
        description=_DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        static_url=STATIC_FOLDER,
        redirect_slashes=False,
        servers=[{"url": ".", "description": "Where this description is"}],  # also below a proxy's path
    )
    docs = docs_router("ViT API", "/openapi.json")
    routers = (docs, *(protocol.router() for protocol in protocols), *operators)
    app.state.routes = [*app.routes, *(route for router in routers for route in router.routes)]
    for router in routers:
        app.include_router(router)
    for kind in (HTTPException, RequestValidationError, ViTError, Exception):
        app.add_exception_handler(kind, from_exception)
    busy = [path for protocol in protocols for path in protocol.hot_routes()]
    if limits is not None:
        busy = [path._replace(handler=limits.limited(path.handler)) for path in busy]
    _describe_access(app, keys, limits)
    front = Entry(
        busy,
        app,
        observers,
        max_pending_bytes=max_pending_bytes,
        is_draining=is_draining,
        admit=None if keys is None else keys.admit,
    )
    return CrossOrigin(front, cors_origins) if cors_origins else front


def _describe_access(app: FastAPI, keys: KeyCheck | None, limits: RateLimits | None) -> None:
    """Have the description say which paths need a key and which are limited, once it is asked for."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            describe_keys(describe(), keys)
            if limits is not None:
                describe_limits(describe())
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]
