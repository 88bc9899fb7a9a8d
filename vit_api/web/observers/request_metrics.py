"""Counts classification requests in the metrics that `vit_api.metrics` defines."""

from __future__ import annotations

from vit_api import metrics
from vit_api.errors import ViTError
from vit_api.ipc.metrics_board import MetricsWriter
from vit_api.urgency import LABELS
from vit_api.web.core.classifier_result import CachedPrediction
from vit_api.web.observers.exchange import Exchange
from vit_api.web.repeats import CountHits
from vit_api.web.requests import Request

_OK = 200


class RequestMetrics:
    """Count each classification request after its response.

    Args:
        metrics_writer: Creates the counters of this process.
    """

    def __init__(self, metrics_writer: MetricsWriter) -> None:
        self._requests = {
            (endpoint, int(status)): metrics_writer.counter(metrics.REQUESTS, endpoint, status)
            for endpoint, status in metrics.REQUESTS.series
        }
        self._durations = [
            {name: metrics_writer.histogram(metrics.DURATION, name, label) for name in metrics.ENDPOINTS}
            for label in LABELS
        ]
        self._failed_s = metrics_writer.counter(metrics.FAILED_DURATION)
        self._received = {name: metrics_writer.counter(metrics.RECEIVED, name) for name in metrics.ENDPOINTS}
        self._rejected = [
            {reason: metrics_writer.counter(metrics.REJECTED, reason, label) for reason in metrics.REASONS}
            for label in LABELS
        ]

    def observe(self, exchange: Exchange) -> None:
        """Count the request if its path classifies."""
        endpoint = exchange.request.endpoint
        if not endpoint:
            return
        self._requests[endpoint, exchange.status].add()
        urgency = exchange.request.urgency
        self._durations[urgency][endpoint].observe(exchange.seconds)
        if exchange.status != _OK:
            self._failed_s.add(exchange.seconds)
        self._received[endpoint].add(exchange.request.received_bytes)
        for outcome in exchange.outcomes:
            if isinstance(outcome, ViTError):
                self._rejected[urgency][outcome.code].add()

    def hit_counter(self, request: Request) -> CountHits:
        """Return what counts cache hits of requests like this one."""
        endpoint = request.endpoint
        requests, received = self._requests[endpoint, _OK], self._received[endpoint]
        durations = self._durations[request.urgency][endpoint]

        def count(_: CachedPrediction, seconds: float, received_bytes: int, hits: int) -> None:
            requests.add(hits)
            durations.observe_several(seconds / hits, hits)
            received.add(received_bytes * hits)

        return count
