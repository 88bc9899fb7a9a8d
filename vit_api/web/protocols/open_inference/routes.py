"""The protocol's routes, from a request to its response. Knows nothing of how tensors are encoded."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

import starlette.requests
from fastapi import APIRouter
from fastapi.routing import APIRoute

from vit_api.decoding.uploads import Upload
from vit_api.errors import NotFound, NotReady
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.web.core.classifier_result import ClassifierResult
from vit_api.web.openapi.descriptions import ANSWER, FAILURES, URGENCY
from vit_api.web.openapi.schemas import ErrorResponse
from vit_api.web.protocols.open_inference.infer_request import HEADER_LENGTH, InferRequest, is_raw, parse_request
from vit_api.web.protocols.open_inference.inputs import Inputs
from vit_api.web.protocols.open_inference.model_info import SERVER, ModelInfo, Statistics
from vit_api.web.protocols.open_inference.outputs import MODEL_VERSION, Outputs
from vit_api.web.protocols.open_inference.tensors import element
from vit_api.web.protocols.results import UploadClassifier, classify_one, classify_several, results_only, source_headers
from vit_api.web.requests import BodyLimit, Headers, Request
from vit_api.web.responses import Response
from vit_api.web.routes import CLASSIFICATION, HotRoute, Operation, Route
from vit_api.web.uploads import SHORT_BODY_BYTES, parse_body

_ENDPOINT = "/v2/models/infer"
_MODEL = "/v2/models/{model_name:path}"
_VERSION = _MODEL + "/versions/{version}"
_BINARY = b"application/octet-stream"
_SHORT_JSON_DIGITS = 4
_SHORT_JSON_BYTES = 10**_SHORT_JSON_DIGITS
"""JSON up to this size is parsed on the event loop; JSON of many numbers takes much longer than an upload in base64."""

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


class OpenInferenceRoutes:
    """The routes of the protocol, for the one model of this server.

    Args:
        classifier: Classifies the uploads.
        inputs: Converts inputs to uploads.
        outputs: Encodes responses.
        model: The model's metadata and configuration.
        statistics: The model's statistics.
        worker_board: Knows whether the server accepts requests.
        max_body_bytes: Maximum size of a request's body.
    """

    def __init__(
        self,
        classifier: UploadClassifier,
        inputs: Inputs,
        outputs: Outputs,
        model: ModelInfo,
        *,
        statistics: Statistics,
        worker_board: WorkerBoard,
        max_body_bytes: int,
    ) -> None:
        self._classifier = classifier
        self._inputs = inputs
        self._outputs = outputs
        self._model = model
        self._statistics = statistics
        self._worker_board = worker_board
        self._file_limit = BodyLimit(inputs.max_upload_bytes, inputs.max_upload_bytes)
        self._body_limit = BodyLimit(max_body_bytes, max_body_bytes)

    def routes(self) -> list[Route]:
        """Return all routes. The longer paths come first, since a model's name may have slashes."""
        server, unknown, model = (APIRouter(tags=["open inference protocol"]) for _ in range(3))
        self._add_server(server)
        self._add_unknown(unknown)
        self._add_model(model)
        return [*_api_routes(server), *self._infer_routes(), *_api_routes(unknown), *_api_routes(model)]

    def _infer_routes(self) -> list[HotRoute]:
        """Return the routes that classify: with the model's version and without."""
        served = f"/v2/models/{self._model.name}"
        routes = []
        for path, template in ((f"{served}/versions/{MODEL_VERSION}", _VERSION), (served, _MODEL)):
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
            routes.append(HotRoute("POST", f"{path}/infer", _ENDPOINT, self.infer, self._limit_of, operation))
        return routes

    def _limit_of(self, request: Request) -> BodyLimit:
        """Return the maximum size of a request's body."""
        return self._file_limit if is_raw(request.headers.get(HEADER_LENGTH)) else self._body_limit

    async def infer(self, request: Request) -> Response:
        """Classify the images of a request; if one fails, the request fails."""
        infer_request, uploads = await self._parse_body(request)
        if infer_request.timeout_s is not None:
            request.limit_to(infer_request.timeout_s)
        if infer_request.urgency is not None:
            request.set_urgency(infer_request.urgency)
        request.timeline.parsed_at = time.monotonic()
        results, headers = await self._classify(request, infer_request, uploads)
        body, header_length = self._outputs.encode(infer_request, [result.prediction for result in results])
        if header_length is None:
            return Response(200, body, headers, results)
        headers = [*headers, (HEADER_LENGTH, b"%d" % header_length)]
        return Response(200, body, headers, results, _BINARY)

    async def _parse_body(self, request: Request) -> tuple[InferRequest, Sequence[Upload]]:
        length = request.headers.get(HEADER_LENGTH)
        is_short_json = length is not None and len(length) <= _SHORT_JSON_DIGITS
        short_bytes = SHORT_BODY_BYTES if is_short_json else _SHORT_JSON_BYTES
        return await parse_body(request, request.take_body(), self._parse, length, short_bytes=short_bytes)

    def _parse(self, body: bytes, header_length: bytes | None) -> tuple[InferRequest, Sequence[Upload]]:
        infer_request, tensor = parse_request(body, header_length, self._inputs.json_limits)
        self._outputs.check(infer_request)
        return infer_request, self._inputs.uploads_of(tensor)

    async def _classify(
        self, request: Request, infer_request: InferRequest, uploads: Sequence[Upload]
    ) -> tuple[list[ClassifierResult], Headers]:
        """Return the result of each image; for a single image also the headers with its source."""
        parts = self._outputs.parts_of(infer_request)
        if len(uploads) == 1:
            result = await classify_one(self._classifier, request, uploads[0], parts)
            return [result], source_headers(result)
        outcomes = await classify_several(self._classifier, request, uploads, parts)
        return list(results_only(outcomes, functools.partial(element, infer_request.input_name))), ()

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
            self._check_ready()
            return {"ready": True}

        @router.post("/v2/repository/index")
        async def repository_index() -> list[dict[str, str]]:
            """List the model."""
            is_ready = self._worker_board.is_ready()
            state = "READY" if is_ready else "UNAVAILABLE"
            return [{"name": self._model.name, "version": MODEL_VERSION, "state": state, "reason": ""}]

        @router.get("/v2/models/stats")
        async def all_statistics() -> dict[str, Any]:
            """Return the model's statistics since the start."""
            return self._statistics.now()

    def _add_unknown(self, router: APIRouter) -> None:
        for path in (_VERSION + "/infer", _MODEL + "/infer"):

            @router.post(path, include_in_schema=False)
            async def infer(request: starlette.requests.Request) -> None:
                """Refuse models and versions other than the one that `_infer_routes` serves."""
                raise self._unknown(**_named(request))

    def _add_model(self, router: APIRouter) -> None:
        for start in (_VERSION, _MODEL):
            described = {"parameters": self._parameters(start)}

            @router.get(f"{start}/ready", responses=_UNKNOWN | _UNREADY, openapi_extra=described)
            async def model_ready(request: starlette.requests.Request) -> dict[str, Any]:
                """Return 200 while the model accepts images."""
                self._check(**_named(request))
                self._check_ready()
                return {"name": self._model.name, "ready": True}

            @router.get(f"{start}/config", responses=_UNKNOWN, openapi_extra=described)
            async def model_configuration(request: starlette.requests.Request) -> dict[str, Any]:
                """Return the model's configuration, as Triton does."""
                self._check(**_named(request))
                return self._model.configuration()

            @router.get(f"{start}/stats", responses=_UNKNOWN, openapi_extra=described)
            async def model_statistics(request: starlette.requests.Request) -> dict[str, Any]:
                """Return the model's statistics since the start, as Triton does."""
                self._check(**_named(request))
                return self._statistics.now()

        for path in (_VERSION, _MODEL):

            @router.get(path, responses=_UNKNOWN, openapi_extra={"parameters": self._parameters(path)})
            async def model_metadata(request: starlette.requests.Request) -> dict[str, Any]:
                """Return the model's inputs and outputs."""
                self._check(**_named(request))
                return self._model.metadata()

    def _parameters(self, path: str) -> list[dict[str, Any]]:
        """Describe the parameters of a path: there is one model, with one version."""
        values = {"model_name": self._model.name, "version": MODEL_VERSION}
        return [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": [value]}}
            for name, value in values.items()
            if f"{{{name}" in path
        ]

    def _check(self, model_name: str, version: str) -> None:
        if (model_name, version) != (self._model.name, MODEL_VERSION):
            raise self._unknown(model_name, version)

    def _unknown(self, model_name: str, version: str) -> NotFound:
        if model_name == self._model.name:
            return NotFound(
                f"The model {model_name!r} has no version {version!r}. Its only version is {MODEL_VERSION!r}."
            )
        return NotFound(f"There is no model {model_name!r}. This server runs {self._model.name!r}.")

    def _check_ready(self) -> None:
        if not self._worker_board.is_ready():
            raise NotReady("The server is starting or shutting down. Retry shortly.")


def _named(request: starlette.requests.Request) -> dict[str, str]:
    """Return the model name and version in a path."""
    return {"version": MODEL_VERSION} | request.path_params


def _api_routes(router: APIRouter) -> list[APIRoute]:
    return [route for route in router.routes if isinstance(route, APIRoute)]
