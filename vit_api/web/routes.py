"""The table of routes: which handler answers a method and path, and how the API's description presents it.

A protocol lists its routes in the order of the description. Hot routes are answered by `web.entry`, the others by
FastAPI.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fastapi.routing import APIRoute
from starlette.requests import Request as AsgiRequest
from starlette.responses import Response as AsgiResponse
from starlette.routing import BaseRoute
from starlette.routing import Route as AsgiRoute

from vit_api.errors import ViTError
from vit_api.web.repeats import HitFinder
from vit_api.web.requests import BodyLimit, Request
from vit_api.web.responses import Response

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_Made = TypeVar("_Made")

Responses = dict[int | str, dict[str, Any]]
"""Responses by status, as FastAPI takes them."""

CLASSIFICATION = "classification"
"""The tag of the operations that classify."""


@dataclass(frozen=True)
class Operation:
    """What the description says of a hot route.

    Attributes:
        path: The path, with parameters in braces.
        name: A function name; the operation's summary and id are made from it.
        description: One or two sentences.
        content: The request body, by media type.
        parameters: OpenAPI parameter objects.
        responses: Responses by status.
        response_model: The body of a 200.
        tags: OpenAPI tags.
    """

    path: str
    name: str
    description: str
    content: dict[str, Any]
    parameters: Sequence[dict[str, Any]] = ()
    responses: Responses = field(default_factory=dict)
    response_model: Any = None
    tags: Sequence[str] = (CLASSIFICATION,)

    def as_route(self, method: str) -> APIRoute:
        """Return a FastAPI route from which the description is generated; `web.entry` serves the hot route itself.

        FastAPI describes routes with a function only, hence the empty one; it is never called.
        """

        async def described() -> None: ...

        return APIRoute(
            self.path,
            described,
            methods=[method],
            name=self.name,
            description=self.description,
            response_model=self.response_model,
            responses=dict(self.responses),
            tags=list(self.tags),
            openapi_extra={
                "parameters": list(self.parameters),
                "requestBody": {"required": True, "content": self.content},
            },
        )


@dataclass(frozen=True)
class HotRoute:
    """A route that classifies, answered without FastAPI.

    Attributes:
        method: The HTTP method.
        path: The path that is served.
        endpoint: Its name in the metrics, one of `metrics.ENDPOINTS`.
        handler: Answers its requests, once their bodies were read.
        body_limit: Returns the maximum size of a request's body, by its headers. Raises a `ViTError` if these show
            that the request can't be answered, before any of the body is read.
        operation: Its description; None if another route's describes it, too.
        find: Returns the response to a request with this body if it is cached, without waiting for anything; None if it
            is not, or that takes longer to find out. The request was admitted; its body is neither compressed nor to
            be checked.
        repeat: Returns what finds responses to further requests with the same head as one that `find` has answered,
            given its response; None: there is none, or their responses depend on more than head and body.
        error_body: Returns the JSON of an error; None: it has the form of all other routes.
    """

    method: str
    path: str
    endpoint: str
    handler: Handler
    body_limit: Callable[[Request], BodyLimit]
    operation: Operation | None = None
    find: Callable[[Request, bytes], Response | None] | None = None
    repeat: Callable[[Request, Response], HitFinder | None] | None = None
    error_body: Callable[[ViTError], bytes] | None = None


Route = HotRoute | APIRoute


class ProtocolRoutes(Protocol):
    """An API that clients speak."""

    def routes(self) -> Sequence[Route]:
        """Return all its routes, in the order of the description."""


def described(routes: Sequence[Route]) -> list[APIRoute]:
    """Return what the API's description is made from."""
    return _each(routes, lambda hot, operation: operation.as_route(hot.method))


def matched(routes: Sequence[Route]) -> Sequence[BaseRoute]:
    """Return what tells the methods of a path, at a fraction of the time that `described` takes; nothing is served."""
    return _each(routes, lambda hot, operation: AsgiRoute(operation.path, _not_served, methods=[hot.method]))


def _each(routes: Sequence[Route], of_hot: Callable[[HotRoute, Operation], _Made]) -> list[APIRoute | _Made]:
    """Return FastAPI's routes as they are, and what is made of the hot ones that are described."""
    found: list[APIRoute | _Made] = []
    for route in routes:
        if isinstance(route, APIRoute):
            found.append(route)
        elif route.operation is not None:
            found.append(of_hot(route, route.operation))
    return found


def _not_served(_: AsgiRequest) -> AsgiResponse:
    raise AssertionError("hot routes are answered by the entry")
