"""The FastAPI application: every path, its description for `/openapi.json`, and `/docs` without an external host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from vit_api import __version__
from vit_api.errors import ViTError
from vit_api.lit_api import DEFAULT_TOP_K
from vit_api.records import TOP_K
from vit_api.routes.cors import CrossOrigin
from vit_api.routes.exchange import Observer
from vit_api.routes.front import Front, Handler
from vit_api.routes.keys import KeyCheck, describe_keys
from vit_api.routes.pages import STATIC_FOLDER, docs_router
from vit_api.routes.predict import PredictRoutes
from vit_api.routes.rate_limits import RateLimits, describe_limits
from vit_api.routes.responses import from_exception
from vit_api.schemas import ErrorResponse, PredictResponse

_DESCRIPTION = "Image classification with a Vision Transformer. Every error has the same body; `code` is stable."

_FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request, a parameter or the image is malformed or empty"},
    413: {"model": ErrorResponse, "description": "The upload has too many bytes, or the image too many pixels"},
    415: {"model": ErrorResponse, "description": "The upload is not an image of a known format"},
    500: {"model": ErrorResponse, "description": "The server failed; its log says why"},
    503: {"model": ErrorResponse, "description": "Overloaded or still starting; `Retry-After` says when to try again"},
    504: {"model": ErrorResponse, "description": "No answer within the time limit"},
}

_HEADERS = {
    "x-cache": ("string", "hit: remembered; miss: computed; coalesced: computed once for several identical uploads"),
    "x-request-id": ("string", "The request's own id if it has a sane one, else a new one"),
    "x-queue-time-ms": ("number", "From the queue's entry to the batch's start"),
    "x-inference-time-ms": ("number", "How long the batch took"),
    "x-batch-size": ("integer", "Images in the batch"),
}
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"headers": {name: {"schema": {"type": kind}, "description": what} for name, (kind, what) in _HEADERS.items()}}
}

_FILE = {"type": "string", "format": "binary", "description": "An image file"}
_ONE_UPLOAD = {
    "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": _FILE}}},
    "application/octet-stream": {"schema": _FILE},
    "image/*": {"schema": _FILE},
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "string", "format": "byte", "description": "Base64, or a data: URL"}},
        }
    },
}
_MANY_UPLOADS = {
    "multipart/form-data": {
        "schema": {"type": "object", "required": ["files"], "properties": {"files": {"type": "array", "items": _FILE}}}
    }
}

_TOP_K = {
    "name": "top_k",
    "in": "query",
    "description": "How many classes to name",
    "schema": {"type": "integer", "minimum": 1, "maximum": TOP_K, "default": DEFAULT_TOP_K},
}


def create_app(
    predict: PredictRoutes,
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
        predict: The handlers that classify.
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
    )
    app.include_router(docs_router("ViT API", "/openapi.json"))
    app.include_router(_described())
    for router in operators:
        app.include_router(router)
    for kind in (HTTPException, RequestValidationError, ViTError, Exception):
        app.add_exception_handler(kind, from_exception)
    limited = (lambda handler: handler) if limits is None else limits.limited
    handlers: dict[tuple[str, str], Handler] = {
        ("POST", "/predict"): limited(predict.predict),
        ("POST", "/predict/batch"): limited(predict.predict_batch),
    }
    _describe_access(app, keys, limits)
    front = Front(
        handlers,
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


def _described() -> APIRouter:
    """Return routes that describe the busy paths. `Front` answers their requests before they get here."""
    router = APIRouter(tags=["classification"])

    @router.post(
        "/predict", response_model=PredictResponse, responses=_ANSWER | _FAILURES, openapi_extra=_takes(_ONE_UPLOAD)
    )
    async def classify_an_image() -> None:
        """Classify one image: a form's field `file`, the raw bytes as the body, or base64 in JSON."""

    @router.post(
        "/predict/batch",
        response_model=list[PredictResponse | ErrorResponse],
        responses=_FAILURES,
        openapi_extra=_takes(_MANY_UPLOADS),
    )
    async def classify_several_images() -> None:
        """Classify 1 to 32 images. The answer has their order; a bad image has its error in its place."""

    return router


def _takes(content: dict[str, Any]) -> dict[str, Any]:
    """Describe what the handlers read from a request themselves, since FastAPI doesn't see it."""
    return {"parameters": [_TOP_K], "requestBody": {"required": True, "content": content}}
