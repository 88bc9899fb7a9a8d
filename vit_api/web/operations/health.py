"""Health checks for orchestrators and load balancers. Knows nothing of requests in flight."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from vit_api.ipc.readiness import Readiness
from vit_api.shared.deployment import SharedDeployment
from vit_api.shared.server import Shared
from vit_api.web.openapi.schemas import HealthResponse, ModelHealth, SeveralHealthResponse

_UNAVAILABLE = 503


def health_router(shared: Shared) -> APIRouter:
    """Return the routes of the health checks.

    Args:
        shared: What the server's processes share.
    """
    router = APIRouter(tags=["operations"])
    body_class = SeveralHealthResponse if shared.has_several else HealthResponse
    unready: dict[int | str, dict[str, Any]] = {
        _UNAVAILABLE: {"model": body_class, "description": "The server is starting or shutting down"}
    }

    @router.head("/health", include_in_schema=False)
    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health", responses=unready, response_model=body_class)
    @router.get("/health/ready", responses=unready, response_model=body_class)
    async def health(response: Response) -> HealthResponse:
        """Return 200 when the server accepts requests, and 503 while the model loads and during shutdown."""
        body = _health_of(shared)
        if not body.model_loaded:
            response.status_code = _UNAVAILABLE
        return body

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """Return 200 while the process is alive."""
        return {"status": "alive"}

    return router


def _health_of(shared: Shared) -> HealthResponse:
    boards, readiness = [one.worker_board for one in shared.deployments], shared.readiness
    body = HealthResponse(
        status=_status(readiness),
        model_loaded=readiness.is_ready(),
        gpu_available=any(device.startswith("cuda") for device in shared.devices),
        device=",".join(shared.devices),
        model=shared.default.checkpoint.name,
        workers=sum(board.workers for board in boards),
        workers_ready=sum(board.ready_count() for board in boards),
        reason=readiness.reason(),
    )
    if not shared.has_several:
        return body
    return SeveralHealthResponse(**body.model_dump(), models=[_model_health(one) for one in shared.deployments])


def _model_health(one: SharedDeployment) -> ModelHealth:
    board = one.worker_board
    return ModelHealth(
        model=one.spec.name,
        version=one.spec.version,
        ready=board.is_ready(),
        traffic=one.spec.traffic or 0.0,
        mirror_traffic=one.spec.mirror_traffic or 0.0,
        workers=board.workers,
        workers_ready=board.ready_count(),
        reason=board.state_text(),
    )


def _status(readiness: Readiness) -> str:
    if readiness.is_draining():
        return "stopping"
    if not readiness.is_ready():
        return "starting"
    return "ok" if readiness.is_whole() else "degraded"
