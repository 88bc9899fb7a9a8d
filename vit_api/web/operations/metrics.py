"""`GET /metrics`, in the format that the scraper asks for."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector


def metrics_router(collector: Collector) -> APIRouter:
    """Return the route for scrapers.

    Args:
        collector: Knows all metrics of the server, so that it doesn't matter which HTTP process is asked.
    """
    router = APIRouter(tags=["operations"])
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)

    # Not a coroutine: FastAPI runs it in a thread, since it takes some milliseconds.
    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics(request: Request) -> Response:
        """Tell all metrics, in Prometheus' text format or OpenMetrics'; docs/metrics.md says what they mean."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    return router
