"""`GET /info`: what this server runs. Knows nothing of requests in flight."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, Response

from vit_api.decoding.resizing import resizer_name
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.shared.deployment import SharedDeployment
from vit_api.shared.server import Shared
from vit_api.web.openapi.links import DESCRIPTION_LINKS
from vit_api.web.openapi.schemas import InfoResponse, ServedModelInfo, SeveralInfoResponse, WorkerInfo
from vit_api.web.operations.cache import cache_info

_PACKAGES = (
    "litserve",
    "torch",
    "transformers",
    "pillow",
    "pillow-heif",
    "cykooz-resizer",
    "numpy",
    "fastapi",
    "uvicorn",
    "redis",
)


def info_router(shared: Shared, *, has_redis: bool) -> APIRouter:
    """Return the route that describes the server.

    Args:
        shared: What the server's processes share.
        has_redis: Whether the caches have a tier beyond this server.
    """
    router = APIRouter(tags=["operations"])
    versions = package_versions()
    settings = _shown_settings(shared)
    body_class = SeveralInfoResponse if shared.has_several else InfoResponse

    @router.get("/info", response_model=body_class)
    async def info(response: Response) -> InfoResponse:
        """Return what this server runs: model, workers, cache, versions and settings."""
        response.headers["link"] = DESCRIPTION_LINKS
        model = _model_info(shared.default, has_redis=has_redis)
        common = InfoResponse.model_fields.keys() & ServedModelInfo.model_fields.keys()
        body = InfoResponse(
            **{name: getattr(model, name) for name in common},
            slots={state.name.lower(): count for state, count in shared.table.count_by_state().items()},
            resizer=resizer_name(exact=shared.settings.exact_decode),
            versions=versions,
            settings=settings,
        )
        if not shared.has_several:
            return body
        models = [_model_info(one, has_redis=has_redis) for one in shared.deployments]
        return SeveralInfoResponse(**dict(body), models=models)

    return router


def _shown_settings(shared: Shared) -> dict[str, Any]:
    """Return the settings without secrets, with models as clients know them: a setting may be a path."""
    shown = shared.settings.model_dump(mode="json")
    if not shared.has_several:
        return {name: value for name, value in shown.items() if name != "models"} | {
            "model": shared.default.checkpoint.name
        }
    own = ("model", "model_name", "revision")
    titles = [one.spec.title for one in shared.deployments]
    return {name: value for name, value in shown.items() if name not in own} | {"models": titles}


def _model_info(one: SharedDeployment, *, has_redis: bool) -> ServedModelInfo:
    checkpoint, board, thresholds = one.checkpoint, one.worker_board, one.thresholds
    table = one.answer_table
    return ServedModelInfo(
        model=checkpoint.name,
        version=one.spec.version,
        traffic=one.spec.traffic or 0.0,
        mirror_traffic=one.spec.mirror_traffic or 0.0,
        ready=board.is_ready(),
        revision=checkpoint.revision,
        labels=len(checkpoint.labels),
        multi_label=checkpoint.has_sigmoid,
        input_shape=checkpoint.preprocessing.pixel_shape,
        workers=[_worker_info(board, worker) for worker in range(board.workers)],
        cache=None if table is None else cache_info(one.cache_board, table, has_redis=has_redis),
        thresholds=None if thresholds is None else dict(thresholds.by_label),
        thresholds_digest=None if thresholds is None else thresholds.digest,
    )


def _worker_info(worker_board: WorkerBoard, worker: int) -> WorkerInfo:
    status = worker_board.read(worker)
    batches, images = worker_board.counts_of(worker)
    return WorkerInfo(
        state=status.state.name.lower(),
        device=status.device,
        device_name=status.device_name,
        dtype=status.dtype,
        engine=status.engine,
        startup_s=round(status.startup_s, 1),
        batches=batches,
        images=images,
        restarts=worker_board.restarts_of(worker),
    )


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of what decides speed and answers: read once, since each is in a file."""
    return {"python": platform.python_version()} | {name: _version_of(name) for name in _PACKAGES}


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
