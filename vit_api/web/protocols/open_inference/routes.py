"""The protocol's routes, from a request to its response. Knows nothing of how tensors are encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import starlette.requests
from fastapi import APIRouter
from fastapi.routing import APIRoute

from vit_api.errors import NotFound, NotReady
from vit_api.web.openapi.descriptions import ANSWER, FAILURES, URGENCY
from vit_api.web.openapi.schemas import ErrorResponse
from vit_api.web.protocols.open_inference.infer_request import HEADER_LENGTH
from vit_api.web.protocols.open_inference.model_info import SERVER, ModelInfo
from vit_api.web.protocols.open_inference.served_model import ServedModel
from vit_api.web.requests import BodyLimit, Request
from vit_api.web.responses import Response
from vit_api.web.routes import CLASSIFICATION, Handler, HotRoute, Operation, Route

_ENDPOINT = "/v2/models/infer"
_MODEL = "/v2/models/{model_name:path}"
_VERSION = _MODEL + "/versions/{version}"
_NOT_READY = "The server is starting or shutting down. Retry shortly."

_UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorResponse, "description": "The model or version does not exist"}
}
_UNREADY: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorResponse, "description": "The server is starting or shutting down"}
}
_BODY = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string"},
                "inputs": {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": 1},
                "outputs": {"type": "array", "items": {"type": "object"}},
                "parameters": {
                    "type": "object",
                    "properties": {
                        "binary_data_output": {"type": "boolean", "default": False},
                        "priority": {
                            "type": "integer",
                            "minimum": 0,
                            "description": "1: normal urgency; 2 and more: low; 0: what the header Priority says",
                        },
                        "timeout": {
                            "type": "integer",
                            "minimum": 0,
                            "description": "Microseconds until the response is due; 0: the server's limit",
                        },
                        "order": {
                            "enum": ["probability", "class"],
                            "default": "probability",
                            "description": "class: outputs have all classes, in the order of the classes",
                        },
                        "top_k": {
                            "anyOf": [{"type": "integer", "minimum": 1}, {"enum": ["all"]}],
                            "description": "Number of the most probable classes; default 20",
                        },
                    },
                    "additionalProperties": False,
                },
            },
        }
    },
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
}
_CONTENT = {
    "content": {
        "application/json": {"schema": {"type": "object"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }
}
_HEADER = {
    "name": HEADER_LENGTH.decode().title(),
    "in": "header",
    "description": "Length of the JSON in bytes, if binary data follows it; 0 if the body is an image file",
    "schema": {"type": "integer", "minimum": 0},
}


LimitOf = Callable[[Request], BodyLimit]


class CanBeReady(Protocol):
    """Knows whether images are accepted."""

    def is_ready(self) -> bool:
        """Return whether they are."""


class OpenInferenceRoutes:
    """The routes of the protocol.

    Args:
        models: The versions of the models that the server runs; those of one model follow each other.
        readiness: Knows whether the server accepts images.
        choose: Notes which model answers a request, given its name and perhaps its version, and returns its number;
            None if there is one model only.
        others: Returns names, versions and states of those that are being loaded or unloaded.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        readiness: CanBeReady,
        choose: Callable[[Request, str, str | None], int] | None = None,
        others: Callable[[], Sequence[tuple[str, str, str]]] = tuple,
    ) -> None:
        self._others = others
        self._models = models
        self._readiness = readiness
        self._choose = choose
        self._names = list(dict.fromkeys(model.info.name for model in models))

    def routes(self) -> list[Route]:
        """Return all routes. The longer paths come first, since a model's name may have slashes."""
        server, unknown, model = (APIRouter(tags=["open inference protocol"]) for _ in range(3))
        self._add_server(server)
        self._add_unknown(unknown)
        self._add_model(model)
        return [*_api_routes(server), *self._infer_routes(), *_api_routes(unknown), *_api_routes(model)]

    def _infer_routes(self) -> list[HotRoute]:
        """Return the routes that classify: with the model's version and without."""
        versions = [
            self._infer_route(number, f"{_path_of(model)}/versions/{model.info.version}", _VERSION, number == 0)
            for number, model in enumerate(self._models)
        ]
        firsts = {model.info.name: number for number, model in reversed(list(enumerate(self._models)))}
        names = [
            self._infer_route(number, _path_of(self._models[number]), _MODEL, number == 0)
            for number in sorted(firsts.values())
        ]
        return [*versions, *names]

    def _infer_route(self, number: int, path: str, template: str, is_described: bool) -> HotRoute:
        """Return a route that classifies: with a model's own handlers, or with those of what is chosen."""
        operation = Operation(
            f"{template}/infer",
            "infer",
            "Classify 1 to 32 images, as tensors in JSON or as binary data.",
            _BODY,
            [*self._parameters(template), _HEADER, *URGENCY],
            {200: ANSWER[200] | _CONTENT} | FAILURES | _UNKNOWN,
            dict[str, Any],
            ("open inference protocol", CLASSIFICATION),
        )
        model = self._models[number]
        infer: Handler = model.infer
        limit_of: LimitOf = model.limit_of
        shown = operation if is_described else None
        if self._choose is not None:
            infer, limit_of = self._chosen(model.info, has_version=template is _VERSION)
            return HotRoute("POST", f"{path}/infer", _ENDPOINT, infer, limit_of, shown)
        return HotRoute("POST", f"{path}/infer", _ENDPOINT, infer, limit_of, shown, model.find, model.repeat)

    def _chosen(self, named: ModelInfo, *, has_version: bool) -> tuple[Handler, LimitOf]:
        """Return the handlers of a path that names a model, and perhaps a version of it."""
        choose = self._choose
        assert choose is not None

        def limit_of(request: Request) -> BodyLimit:
            return self._models[choose(request, named.name, named.version if has_version else None)].limit_of(request)

        async def infer(request: Request) -> Response:
            assert request.deployment is not None
            return await self._models[request.deployment.number].infer(request)

        return infer, limit_of

    def _add_server(self, router: APIRouter) -> None:
        @router.get("/v2")
        async def server_metadata() -> dict[str, Any]:
            """Return the server's name and the protocol extensions that it supports."""
            return SERVER

        @router.head("/v2/health/live", include_in_schema=False)
        @router.get("/v2/health/live")
        async def server_live() -> dict[str, bool]:
            """Return 200 while the process is alive."""
            return {"live": True}

        @router.head("/v2/health/ready", include_in_schema=False)
        @router.get("/v2/health/ready", responses=_UNREADY)
        async def server_ready() -> dict[str, bool]:
            """Return 200 while images are accepted."""
            if not self._readiness.is_ready():
                raise NotReady(_NOT_READY)
            return {"ready": True}

        @router.post("/v2/repository/index")
        async def repository_index() -> list[dict[str, str]]:
            """List the models."""
            served = [_index_entry(model, has_reason=self._choose is not None) for model in self._models]
            names = ("name", "version", "state", "reason")
            return [*served, *(dict(zip(names, (*one, ""), strict=True)) for one in self._others())]

        @router.get("/v2/models/stats")
        async def all_statistics() -> dict[str, Any]:
            """Return the statistics of all models since the start."""
            return _statistics_of(self._models)

    def _add_unknown(self, router: APIRouter) -> None:
        for path in (_VERSION + "/infer", _MODEL + "/infer"):

            @router.post(path, include_in_schema=False)
            async def infer(request: starlette.requests.Request) -> None:
                """Refuse models and versions other than those that `_infer_routes` serves."""
                raise self._unknown(**request.path_params)

    def _add_model(self, router: APIRouter) -> None:
        for start in (_VERSION, _MODEL):
            described = {"parameters": self._parameters(start)}

            @router.get(f"{start}/ready", responses=_UNKNOWN | _UNREADY, openapi_extra=described)
            async def model_ready(request: starlette.requests.Request) -> dict[str, Any]:
                """Return 200 while the model accepts images."""
                models = self._find(**request.path_params)
                needed = [model for model in models if model.traffic] or models
                alive = [model for model in needed if not model.worker_board.is_gone()]
                if not alive or not all(model.worker_board.is_ready() for model in alive):
                    raise NotReady(self._reason_of(needed))
                return {"name": models[0].info.name, "ready": True}

            @router.get(f"{start}/config", responses=_UNKNOWN, openapi_extra=described)
            async def model_configuration(request: starlette.requests.Request) -> dict[str, Any]:
                """Return the model's configuration, as Triton does."""
                return _main(self._find(**request.path_params)).info.configuration()

            @router.get(f"{start}/stats", responses=_UNKNOWN, openapi_extra=described)
            async def model_statistics(request: starlette.requests.Request) -> dict[str, Any]:
                """Return the model's statistics since the start, as Triton does."""
                return _statistics_of(self._find(**request.path_params))

        for path in (_VERSION, _MODEL):

            @router.get(path, responses=_UNKNOWN, openapi_extra={"parameters": self._parameters(path)})
            async def model_metadata(request: starlette.requests.Request) -> dict[str, Any]:
                """Return the model's inputs and outputs."""
                return _main(self._find(**request.path_params)).info.metadata()

    def _parameters(self, path: str) -> list[dict[str, Any]]:
        """Describe the parameters of a path."""
        versions = list(dict.fromkeys(model.info.version for model in self._models))
        return [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": values}}
            for name, values in (("model_name", self._names), ("version", versions))
            if f"{{{name}" in path
        ]

    def _find(self, model_name: str, version: str | None = None) -> list[ServedModel]:
        """Return a version of a model, or all of them.

        Raises:
            NotFound: There is none.
        """
        found = [
            model for model in self._models if model.info.name == model_name and version in (None, model.info.version)
        ]
        if not found:
            raise self._unknown(model_name, version)
        return found

    def _unknown(self, model_name: str, version: str | None = None) -> NotFound:
        versions = [model.info.version for model in self._models if model.info.name == model_name]
        if not versions:
            return NotFound(f"There is no model {model_name!r}. This server runs {', '.join(map(repr, self._names))}.")
        known = f"Its only version is {versions[0]!r}"
        if len(versions) > 1:
            known = f"Its versions are {', '.join(map(repr, versions))}"
        return NotFound(f"The model {model_name!r} has no version {version!r}. {known}.")

    def _reason_of(self, models: Sequence[ServedModel]) -> str:
        if self._choose is None or models[0].worker_board.is_draining():
            return _NOT_READY
        parts = [f"version {model.info.version}: {model.worker_board.state_text()}" for model in models]
        return f"The model {models[0].info.name!r} is not ready ({'; '.join(parts)}). Retry shortly."


def _path_of(model: ServedModel) -> str:
    return f"/v2/models/{model.info.name}"


def _main(models: Sequence[ServedModel]) -> ServedModel:
    """Return the version with the most traffic."""
    return max(models, key=lambda model: model.traffic)


def _statistics_of(models: Sequence[ServedModel]) -> dict[str, Any]:
    """Return $stats_model_response."""
    return {"model_stats": [model.statistics.now() for model in models]}


def _index_entry(model: ServedModel, *, has_reason: bool) -> dict[str, str]:
    """Return an element of $repository_index_response."""
    board = model.worker_board
    reason = board.state_text() if has_reason else ""
    state = "READY" if board.is_ready() else "UNAVAILABLE"
    return {"name": model.info.name, "version": model.info.version, "state": state, "reason": reason}


def _api_routes(router: APIRouter) -> list[APIRoute]:
    return [route for route in router.routes if isinstance(route, APIRoute)]
