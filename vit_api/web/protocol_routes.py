"""The routes of all protocols: for one model its own handlers, for several those of the model that is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import starlette.requests
from fastapi import APIRouter
from fastapi.routing import APIRoute

from vit_api.errors import BadRequest
from vit_api.shared.server import Shared
from vit_api.web.core.deployment_choice import Chosen, DeploymentChoice
from vit_api.web.deployment import Handlers
from vit_api.web.dispatch import UNKNOWN, Dispatch
from vit_api.web.in_flight import InFlight
from vit_api.web.openapi.descriptions import ANSWER, FAILURES, URGENCY
from vit_api.web.openapi.schemas import LabelScore
from vit_api.web.protocols.hugging_face import CONTENT
from vit_api.web.protocols.open_inference.routes import OpenInferenceRoutes
from vit_api.web.protocols.openai.embeddings import EmbeddingRoutes
from vit_api.web.protocols.openai.moderations import ModerationRoutes
from vit_api.web.requests import Request
from vit_api.web.routes import HotRoute, Operation, Route
from vit_api.web.uploads import Uploads

_MODEL = "/models/{model_name:path}"

T = TypeVar("T")


def routes_of_one(shared: Shared, handlers: Sequence[Handlers], uploads: Uploads) -> list[Route]:
    """Return the routes of a server with one model, in the order of the description."""
    (only,) = handlers
    return [
        *only.predict.routes(),
        *only.hugging_face.routes(),
        *ModerationRoutes(lambda *_: only.moderations, uploads).routes(),
        *EmbeddingRoutes(lambda *_: only.embeddings, uploads).routes(),
        *OpenInferenceRoutes([only.open_inference], shared.readiness).routes(),
    ]


def routes_of_several(
    shared: Shared,
    handlers: Sequence[Handlers],
    uploads: Uploads,
    in_flight: InFlight | None = None,
    others: Callable[[], Sequence[tuple[str, str, str]]] = tuple,
) -> list[Route]:
    """Return the routes of a server with several models, in the order of the description.

    Args:
        shared: What the server's processes share.
        handlers: What answers, for each deployment that is served.
        uploads: Finds the uploads in requests.
        in_flight: Counts the requests for each deployment; None: nothing does.
        others: Returns names, versions and states of those that are being loaded or unloaded.
    """
    served = shared.served
    specs = [one.spec for one in served]
    boards = [one.worker_board for one in served]
    choice = DeploymentChoice(specs, lambda number: boards[number].is_gone(), [one.number for one in served])
    dispatch = Dispatch(specs, choice, in_flight)
    predict = [one.predict.routes() for one in handlers]
    hugging_face = [one.hugging_face.routes()[0] for one in handlers]
    parameters = dispatch.parameters()[1:]
    named = {"type": "string", "description": "The model that answers", "enum": dispatch.names}

    def choose(request: Request, name: str, version: str | None) -> int:
        return dispatch.choose(request, name, version).number

    return [
        *(dispatch.merge(routes) for routes in zip(*predict, strict=True)),
        dispatch.merge(hugging_face),
        *_routes_by_name(dispatch, hugging_face),
        *ModerationRoutes(
            _by_field(dispatch, [one.moderations for one in handlers]), uploads, named, parameters
        ).routes(),
        *EmbeddingRoutes(
            _by_field(dispatch, [one.embeddings for one in handlers]), uploads, named, parameters
        ).routes(),
        *OpenInferenceRoutes([one.open_inference for one in handlers], shared.readiness, choose, others).routes(),
    ]


def _by_field(dispatch: Dispatch, models: Sequence[T]) -> Callable[[Request, str], T]:
    """Return what chooses the model by the field `model` of the JSON, or else by the query."""

    def model_of(request: Request, named: str) -> T:
        query = dispatch.take_query(request)
        if named and query.name and named != query.name:
            raise BadRequest(f"'model' has more than one value: {named[:64]!r}, {query.name[:64]!r}. Send it once.")
        return models[dispatch.choose(request, named or query.name, query.version).number]

    return model_of


def _routes_by_name(dispatch: Dispatch, routes: Sequence[HotRoute]) -> list[Route]:
    """Return the routes that Hugging Face's clients take for the address of a model."""
    known = dispatch.names
    path = {"name": "model_name", "in": "path", "required": True, "schema": {"type": "string", "enum": known}}
    operation = Operation(
        _MODEL,
        "classify_by_a_model_as_hugging_face_does",
        "Classify one image by a model, as Hugging Face's inference API does.",
        CONTENT,
        [path, *dispatch.parameters()[1:], *URGENCY],
        ANSWER | FAILURES | UNKNOWN,
        list[LabelScore],
    )
    return [
        *(_route_by_name(dispatch, routes, name, operation if name == known[0] else None) for name in known),
        *_unknown_models(dispatch),
    ]


def _route_by_name(dispatch: Dispatch, routes: Sequence[HotRoute], name: str, operation: Operation | None) -> HotRoute:
    def choose(request: Request) -> Chosen:
        query = dispatch.take_query(request)
        if query.name not in (None, name):
            raise BadRequest(f"The path names the model {name!r}, and the query another one. Leave one of them out.")
        return dispatch.choose(request, name, query.version)

    return dispatch.merge(
        routes, choose, path=f"/models/{name}", operation=operation, is_described=operation is not None
    )


def _unknown_models(dispatch: Dispatch) -> list[APIRoute]:
    router = APIRouter()

    @router.post(_MODEL, include_in_schema=False)
    async def unknown(request: starlette.requests.Request) -> None:
        """Refuse models that there are not."""
        dispatch.find(request.path_params["model_name"], None)

    return [route for route in router.routes if isinstance(route, APIRoute)]
