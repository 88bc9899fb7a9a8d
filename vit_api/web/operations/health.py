"""Health checks and server information. Knows nothing of requests in flight."""

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
_UNAVAILABLE = 503


def operations_router(
    checkpoint: Checkpoint,
    worker_board: WorkerBoard,
    table: SlotTable,
    devices: Sequence[str],
    *,
    resizer: str,
    settings: dict[str, Any],
    cache_info: Callable[[], CacheInfo | None],
) -> APIRouter:
    """Return the routes for operators.

    Args:
        checkpoint: The served model.
        worker_board: The workers' statuses.
        table: The slots for images.
        devices: The devices that the model runs on.
        resizer: The package that resizes images.
        settings: The settings to show, without secrets.
        cache_info: Returns the caches' statistics; None if caching is off.
    """
    router = APIRouter(tags=["operations"])
    not_ready: dict[int | str, dict[str, Any]] = {
        _UNAVAILABLE: {"model": HealthResponse, "description": "The server is starting or shutting down"}
    }

    def health_now() -> HealthResponse:
        ready = worker_board.ready_count()
        is_ready = worker_board.is_ready()
        if worker_board.is_draining():
            status = "stopping"
        elif not is_ready:
            status = "starting"
        else:
            status = "ok" if ready == worker_board.workers else "degraded"
        return HealthResponse(
            status=status,
            model_loaded=is_ready,
            gpu_available=any(device.startswith("cuda") for device in devices),
            device=",".join(devices),
            model=checkpoint.name,
            workers=worker_board.workers,
            workers_ready=ready,
        )

    @router.head("/health", include_in_schema=False)
    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health", responses=not_ready)
    @router.get("/health/ready", responses=not_ready)
    async def health(response: Response) -> HealthResponse:
        """Return 200 when the server accepts requests, and 503 while the model loads and during shutdown."""
        body = health_now()
        if not body.model_loaded:
            response.status_code = _UNAVAILABLE
        return body

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """Return 200 while the process is alive."""
        return {"status": "alive"}

    @router.get("/info")
    async def info() -> InfoResponse:
        """Return what this server runs: model, workers, cache, versions and settings."""
        return InfoResponse(
            model=checkpoint.name,
            revision=checkpoint.revision,
            labels=len(checkpoint.labels),
            input_shape=checkpoint.preprocessing.pixel_shape,
            workers=[_worker_info(worker_board, worker) for worker in range(worker_board.workers)],
            slots={state.name.lower(): count for state, count in table.count_by_state().items()},
            cache=cache_info(),
            resizer=resizer,
            versions={"python": platform.python_version()} | {name: _version_of(name) for name in _PACKAGES},
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
