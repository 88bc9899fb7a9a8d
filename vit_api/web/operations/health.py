"""Health checks for orchestrators and load balancers. Knows nothing of requests in flight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response

from vit_api.ipc.worker_board import WorkerBoard
from vit_api.web.openapi.schemas import HealthResponse

_UNAVAILABLE = 503
_NOT_READY: dict[int | str, dict[str, Any]] = {
    _UNAVAILABLE: {"model": HealthResponse, "description": "The server is starting or shutting down"}
}


def health_router(model: str, worker_board: WorkerBoard, devices: Sequence[str]) -> APIRouter:
    """Return the routes of the health checks.

    Args:
        model: The name of the served model.
        worker_board: The workers' statuses.
        devices: The devices that the model runs on.
    """
    router = APIRouter(tags=["operations"])

    @router.head("/health", include_in_schema=False)
    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health", responses=_NOT_READY)
    @router.get("/health/ready", responses=_NOT_READY)
    async def health(response: Response) -> HealthResponse:
        """Return 200 when the server accepts requests, and 503 while the model loads and during shutdown."""
        body = HealthResponse(
            status=_status(worker_board),
            model_loaded=worker_board.is_ready(),
            gpu_available=any(device.startswith("cuda") for device in devices),
            device=",".join(devices),
            model=model,
            workers=worker_board.workers,
            workers_ready=worker_board.ready_count(),
            reason=worker_board.reason(),
        )
        if not body.model_loaded:
            response.status_code = _UNAVAILABLE
        return body

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """Return 200 while the process is alive."""
        return {"status": "alive"}

    return router


def _status(worker_board: WorkerBoard) -> str:
    if worker_board.is_draining():
        return "stopping"
    if not worker_board.is_ready():
        return "starting"
    return "ok" if worker_board.ready_count() == worker_board.workers else "degraded"
