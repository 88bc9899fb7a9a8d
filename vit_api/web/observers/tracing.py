"""OpenTelemetry traces: a span for each request, with one below it for each stage that it went through.

The spans are made when the request has its answer, from the times that were taken anyway, so a server without traces
pays nothing. Where they go is OpenTelemetry's own business: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER` and
the like; see docs/tracing.md. Needs requirements-otel.txt.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from vit_api import __version__
from vit_api.errors import InternalError
from vit_api.web.core.classifier import ClassifierResult
from vit_api.web.observers.exchange import Exchange

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

_SERVICE = "vit-api"
_NS = 1_000_000_000
_FLUSH_S = 3.0


def is_installed() -> bool:
    """Tell whether what this needs beside the server's own packages is there."""
    return importlib.util.find_spec("opentelemetry.sdk") is not None


def _is_named() -> bool:
    """Tell whether the environment names the service; what is given in code would go before it."""
    return "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")


class _Stage(NamedTuple):
    """A part of a request's time, in seconds of the monotonic clock."""

    name: str
    began_at: float
    ended_at: float


class Tracing:
    """Send a trace of each request. For one HTTP process: to be made after the fork, since it starts a thread."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        about = {"service.version": __version__}
        if not _is_named():
            about["service.name"] = _SERVICE
        provider = TracerProvider(resource=Resource.create(about))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._bind(provider)

    def _bind(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("vit_api", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def observe(self, exchange: Exchange) -> None:
        """Make the request's spans; they are sent later, by a thread."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        scope = exchange.request.scope
        shift_ns = time.time_ns() - time.monotonic_ns()  # spans have the time of day
        span = self._tracer.start_span(
            f"{scope['method']} {scope['path']}" if exchange.outcomes else scope["method"],
            self._parent(exchange),
            SpanKind.SERVER,
            _attributes(exchange),
            start_time=round(exchange.request.timeline.arrived_at * _NS) + shift_ns,
        )
        if span.is_recording():
            context = set_span_in_context(span)
            for stage in _stages(exchange):
                child = self._tracer.start_span(stage.name, context, start_time=round(stage.began_at * _NS) + shift_ns)
                child.end(round(stage.ended_at * _NS) + shift_ns)
            if exchange.status >= InternalError.status:
                span.set_status(Status(StatusCode.ERROR))
        span.end(round(exchange.ended_at * _NS) + shift_ns)

    def _parent(self, exchange: Exchange) -> Context:
        """Return the trace that the client's headers name, as W3C's Trace Context has it."""
        headers = exchange.request.headers
        names = ("traceparent", "tracestate")
        carrier = {name: headers[name.encode()].decode("latin-1") for name in names if name.encode() in headers}
        return self._propagator.extract(carrier)

    def close(self) -> None:
        """Send what is left, for a few seconds at the most."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(_FLUSH_S)


def _attributes(exchange: Exchange) -> dict[str, str | int]:
    """Return what OpenTelemetry's conventions for HTTP servers ask for, and what is ours."""
    scope = exchange.request.scope
    attributes: dict[str, str | int] = {
        "http.request.method": scope["method"],
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "http.response.status_code": exchange.status,
        "http.request.body.size": exchange.request.received_bytes,
        "vit.request_id": exchange.request.id.decode(),
    }
    if len(exchange.outcomes) > 1:
        return attributes | {"vit.images": len(exchange.outcomes)}
    for outcome in exchange.outcomes:
        if not isinstance(outcome, ClassifierResult):
            attributes["error.type"] = outcome.code
            continue
        attributes["vit.cache"] = outcome.source.value
        if outcome.answer is not None:
            attributes["vit.batch_size"] = outcome.answer.batch_size
    return attributes


def _stages(exchange: Exchange) -> Iterator[_Stage]:
    """Yield the stages of a request; those of a batch's images are not told apart."""
    request = exchange.request
    if request.timeline.parsed_at is None:
        return
    yield _Stage("parse", request.timeline.arrived_at, request.timeline.parsed_at)
    if request.timeline.looked_up_at is None:
        return
    yield _Stage("cache", request.timeline.parsed_at, request.timeline.looked_up_at)
    outcome = exchange.outcomes[0] if exchange.outcomes else None
    if not isinstance(outcome, ClassifierResult) or (answer := outcome.own_answer) is None:
        return
    # Counted back from the answer, since processes exchange durations: the gap before is a wait for a thread.
    began_at = exchange.ended_at - answer.inference_s
    queued_at = began_at - answer.queue_s
    yield _Stage("decode", queued_at - outcome.decode_s, queued_at)
    yield _Stage("queue", queued_at, began_at)
    yield _Stage("inference", began_at, exchange.ended_at)
