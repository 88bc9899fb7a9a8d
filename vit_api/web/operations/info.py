"""`GET /info`: what this server runs. Knows nothing of requests in flight."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, Response

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.ipc.slots import SlotTable
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.labels.thresholds import Thresholds
from vit_api.web.openapi.links import DESCRIPTION_LINKS
from vit_api.web.openapi.schemas import CacheInfo, InfoResponse, WorkerInfo

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


def info_router(
    checkpoint: Checkpoint,
    worker_board: WorkerBoard,
    table: SlotTable,
    *,
    resizer: str,
    settings: dict[str, Any],
    thresholds: Thresholds | None = None,
    cache_info: Callable[[], CacheInfo | None],
) -> APIRouter:
    """Return the route that describes the server.

    Args:
        checkpoint: The served model.
        worker_board: The workers' statuses.
        table: The slots for images.
        resizer: The package that resizes images.
        settings: The settings to show, without secrets.
        thresholds: From which scores on labels are flagged; None if none are.
        cache_info: Returns the caches' statistics; None if caching is off.
    """
    router = APIRouter(tags=["operations"])
    versions = {"python": platform.python_version()} | {name: _version_of(name) for name in _PACKAGES}

    @router.get("/info")
    async def info(response: Response) -> InfoResponse:
        """Return what this server runs: model, workers, cache, versions and settings."""
        response.headers["link"] = DESCRIPTION_LINKS
        return InfoResponse(
            model=checkpoint.name,
            revision=checkpoint.revision,
            labels=len(checkpoint.labels),
            multi_label=checkpoint.has_sigmoid,
            input_shape=checkpoint.preprocessing.pixel_shape,
            workers=[_worker_info(worker_board, worker) for worker in range(worker_board.workers)],
            slots={state.name.lower(): count for state, count in table.count_by_state().items()},
            cache=cache_info(),
            thresholds=None if thresholds is None else dict(thresholds.by_label),
            thresholds_digest=None if thresholds is None else thresholds.digest,
            resizer=resizer,
            versions=versions,
            settings=settings,
        )

    return router


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


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
