"""`GET /metrics`, in the format that the scraper accepts. Knows nothing of what is measured."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector


def metrics_router(collector: Collector) -> APIRouter:
    """Return the route for scrapers.

    Args:
        collector: Collects the metrics of the whole server, so any HTTP process can be scraped.
    """
    router = APIRouter(tags=["operations"])
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)

    # Not a coroutine, so that FastAPI runs it in a thread: a scrape takes some milliseconds.
    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics(request: Request) -> Response:
        """Return all metrics in the Prometheus or OpenMetrics text format; docs/metrics.md explains them."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    return router
