"""Loads and unloads models, and changes their traffic: Triton's model repository extension, for the operator.

See https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md. Its index
is with the other routes of the protocol. Knows nothing of how a model is loaded.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vit_api.errors import BadRequest, UploadTooLarge
from vit_api.web.admission.keys import check_operator
from vit_api.web.live import LiveDeployments
from vit_api.web.openapi.schemas import ErrorResponse
from vit_api.web.operations.model_config import fields_of

B = TypeVar("B", bound=BaseModel)

_MODEL = "/v2/repository/models/{model_name:path}"
_MAX_BODY_BYTES = 2**20
_IGNORED = frozenset(("unload_dependents",))
"""Of Triton's parameters: no model here depends on another."""

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request is malformed, or can't be done"},
    401: {"model": ErrorResponse, "description": "The operator key is missing or invalid"},
    403: {"model": ErrorResponse, "description": "The server has no operator key, so this is disabled"},
    404: {"model": ErrorResponse, "description": "The model or version does not exist"},
    409: {"model": ErrorResponse, "description": "The model can't be loaded; nothing has changed"},
    503: {"model": ErrorResponse, "description": "The server is shutting down, or too many commands wait"},
}


class LoadRequest(BaseModel):
    """The body of a request to load a model."""

    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="`config`: what to load, as JSON text: `model`, and perhaps `revision`, `version`, `traffic`, "
        "`mirror_traffic`, `dtype`, `workers_per_device`, `max_batch_size`, `thresholds`, `categories`; of Triton's "
        "configuration `max_batch_size`, `instance_group` and `parameters`",
    )


class UnloadRequest(BaseModel):
    """The body of a request to unload a model."""

    parameters: dict[str, Any] = Field(default_factory=dict, description="`version`: the only one to unload")


class TrafficRequest(BaseModel):
    """The body of a request to change the traffic of a model, or its mirror; a version has one of the two at most."""

    model_config = ConfigDict(extra="forbid")

    traffic: dict[str, float] = Field(
        default_factory=dict, description="Percentages by version; all of the model make 100 together"
    )
    mirror_traffic: dict[str, float] = Field(
        default_factory=dict,
        description="By version, the percentage of the images of those with traffic that it computes as well, without "
        "answering; of one version at most",
    )


class Changed(BaseModel):
    """What was done."""

    name: str
    version: str | None = None
    warning: str | None = Field(None, description="What did not succeed beside it: it is done, and not saved")


def repository_router(live: LiveDeployments, operator_key: str | None) -> APIRouter:
    """Return the routes.

    Args:
        live: Passes commands to the main process.
        operator_key: Key that authorises them; None disables them.
    """
    router = APIRouter(tags=["operations"])

    def check(request: Request) -> None:
        check_operator(request, operator_key, "Loading models")

    @router.post(_MODEL + "/load", responses=_REFUSALS, openapi_extra=_described(LoadRequest))
    async def load_model(request: Request, model_name: str) -> Changed:
        """Load a model, and answer once it takes requests. A load that fails changes nothing.

        Requires the operator key, as `Authorization: Bearer <key>` or `X-API-Key: <key>`.
        """
        check(request)
        parameters = (await _body_of(request, LoadRequest)).parameters
        _refuse_unknown(parameters, {"config"})
        reply = await live.command("load", model_name, fields_of(model_name, parameters.get("config")))
        return Changed(name=model_name, version=reply.version, warning=reply.warning)

    @router.post(_MODEL + "/unload", responses=_REFUSALS, openapi_extra=_described(UnloadRequest))
    async def unload_model(request: Request, model_name: str) -> Changed:
        """Unload a model, or a version of it, once it has answered what it has.

        Requires the operator key, as `Authorization: Bearer <key>` or `X-API-Key: <key>`.
        """
        check(request)
        parameters = (await _body_of(request, UnloadRequest)).parameters
        _refuse_unknown(parameters, {"version", *_IGNORED})
        version = parameters.get("version")
        arguments = {} if version is None else {"version": str(version)}
        reply = await live.command("unload", model_name, arguments)
        return Changed(name=model_name, version=reply.version, warning=reply.warning)

    @router.post(_MODEL + "/traffic", responses=_REFUSALS, openapi_extra=_described(TrafficRequest))
    async def change_traffic(request: Request, model_name: str) -> Changed:
        """Change the traffic of a model's versions, or which one mirrors; those that are not named keep theirs.

        A mirror that is given traffic answers clients from then on, and mirrors no longer; the reverse takes it back.

        Requires the operator key, as `Authorization: Bearer <key>` or `X-API-Key: <key>`.
        """
        check(request)
        body = await _body_of(request, TrafficRequest)
        reply = await live.command("traffic", model_name, body.model_dump())
        return Changed(name=model_name, warning=reply.warning)

    return router


async def _body_of(request: Request, kind: type[B]) -> B:
    """Return the body of a request, whatever its content type: Triton's client sends none.

    Raises:
        BadRequest: It is malformed.
        UploadTooLarge: It is no configuration of a model.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise UploadTooLarge(_MAX_BODY_BYTES)
    try:
        return kind.model_validate_json(bytes(body) or b"{}")
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise BadRequest(f"The JSON of the body{f', {where!r}' if where else ''}: {problem['msg']}.") from None


def _described(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe the body of a request."""
    return {"requestBody": {"content": {"application/json": {"schema": kind.model_json_schema()}}}}


def _refuse_unknown(parameters: dict[str, Any], known: set[str]) -> None:
    for name in parameters.keys() - known:
        files = " Files are not taken: put them where the server can read them." if name.startswith("file:") else ""
        raise BadRequest(f"There is no parameter {name[:64]!r} here; the known ones are {', '.join(known)}.{files}")
