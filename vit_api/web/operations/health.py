"""Health and information: what operators and probes ask. Knows nothing of requests under way."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, Response

from vit_api.checkpoints.checkpoint import Checkpoint
from vit_api.ipc.slots import SlotTable
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.web.openapi.schemas import CacheInfo, HealthResponse, InfoResponse, WorkerInfo

_PACKAGES = ("litserve", "torch", "transformers", "pillow", "numpy", "fastapi", "uvicorn", "redis")
_UNAVAILABLE = 503


def operations_router(
    checkpoint: Checkpoint,
    board: WorkerBoard,
    table: SlotTable,
    devices: Sequence[str],
    *,
    settings: dict[str, Any],
    cache_info: Callable[[], CacheInfo | None],
) -> APIRouter:
    """Return the routes for operators.

    Args:
        checkpoint: The model that is served.
        board: What the workers say of themselves.
        table: Where the images are.
        devices: Where the model runs.
        settings: What to show of the settings; without secrets.
        cache_info: What the caches did so far.
    """
    router = APIRouter(tags=["operations"])
    not_ready: dict[int | str, dict[str, Any]] = {
        _UNAVAILABLE: {"model": HealthResponse, "description": "Starting or stopping"}
    }

    def health_now() -> HealthResponse:
        ready = board.ready_count()
        is_ready = board.is_ready()
        if board.is_draining():
            status = "stopping"
        elif not is_ready:
            status = "starting"
        else:
            status = "ok" if ready == board.workers else "degraded"
        return HealthResponse(
            status=status,
            model_loaded=is_ready,
            gpu_available=any(device.startswith("cuda") for device in devices),
            device=",".join(devices),
            model=checkpoint.name,
            workers=board.workers,
            workers_ready=ready,
        )

    @router.head("/health", include_in_schema=False)
    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health", responses=not_ready)
    @router.get("/health/ready", responses=not_ready)
    async def health(response: Response) -> HealthResponse:
        """Tell whether images are welcome: 200 if so; 503 while the model loads and once the server stops."""
        body = health_now()
        if not body.model_loaded:
            response.status_code = _UNAVAILABLE
        return body

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """Answer 200 as long as this process answers at all."""
        return {"status": "alive"}

    @router.get("/info")
    async def info() -> InfoResponse:
        """Tell what runs here: the model, the workers, the cache, versions and settings."""
        return InfoResponse(
            model=checkpoint.name,
            revision=checkpoint.revision,
            labels=len(checkpoint.labels),
            input_shape=checkpoint.preprocessing.pixel_shape,
            workers=[_worker_info(board, worker) for worker in range(board.workers)],
            slots={state.name.lower(): count for state, count in table.count_by_state().items()},
            cache=cache_info(),
            versions={"python": platform.python_version()} | {name: _version_of(name) for name in _PACKAGES},
            settings=settings,
        )

    return router


def _worker_info(board: WorkerBoard, worker: int) -> WorkerInfo:
    notice = board.read(worker)
    batches, images = board.counts_of(worker)
    return WorkerInfo(
        state=notice.state.name.lower(),
        device=notice.device,
        device_name=notice.device_name,
        dtype=notice.dtype,
        engine=notice.engine,
        startup_s=round(notice.startup_s, 1),
        batches=batches,
        images=images,
        restarts=board.restarts_of(worker),
    )


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
