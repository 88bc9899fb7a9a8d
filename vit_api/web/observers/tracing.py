"""OpenTelemetry traces: a span for each request, with a child span for each stage.

The spans are created after the response, from timestamps that are taken anyway, so a server without tracing pays
nothing. Export and sampling are configured by OpenTelemetry's own variables, such as `OTEL_EXPORTER_OTLP_ENDPOINT` and
`OTEL_TRACES_SAMPLER`; see docs/tracing.md. Needs requirements-otel.txt.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from vit_api import __version__
from vit_api.errors import InternalError
from vit_api.web.core.classifier_result import ClassifierResult
from vit_api.web.observers.exchange import Exchange
from vit_api.web.routes import HotRoute, Route

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

_SERVICE = "vit-api"
_CONVERTER = re.compile(r":\w+(?=})")
"""What starlette adds to a parameter of a path."""
_NS = 1_000_000_000
_FLUSH_S = 3.0


def is_installed() -> bool:
    """Return whether the optional OpenTelemetry packages are installed."""
    return importlib.util.find_spec("opentelemetry.sdk") is not None


def _is_service_named() -> bool:
    """Return whether the environment names the service; a name set in code would override it."""
    return "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")


class _Stage(NamedTuple):
    """A stage of a request; times are in seconds of the monotonic clock."""

    name: str
    began_at: float
    ended_at: float


class Tracing:
    """Export a trace of each request. Create it in the HTTP process, after the fork, since it starts a thread."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        attributes = {"service.version": __version__}
        if not _is_service_named():
            attributes["service.name"] = _SERVICE
        provider = TracerProvider(resource=Resource.create(attributes))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._bind(provider)
        self._templates: dict[str, str] = {}

    def name_routes(self, routes: Iterable[Route]) -> None:
        """Learn the templates of the hot routes' paths, for `http.route`."""
        for route in routes:
            if isinstance(route, HotRoute):
                self._templates[route.path] = route.path if route.operation is None else route.operation.path

    def _bind(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("vit_api", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def observe(self, exchange: Exchange) -> None:
        """Create the request's spans; a thread exports them later."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        scope = exchange.request.scope
        shift_ns = time.time_ns() - time.monotonic_ns()  # spans use wall-clock time
        span = self._tracer.start_span(
            f"{scope['method']} {scope['path']}" if exchange.outcomes else scope["method"],
            self._parent(exchange),
            SpanKind.SERVER,
            _attributes(exchange) | self._route_of(exchange),
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

    def _route_of(self, exchange: Exchange) -> dict[str, str | int]:
        """Return `http.route`, the template of the path; nothing if there is no such route, as the conventions say."""
        request = exchange.request
        template = self._templates.get(request.path) if request.endpoint else None
        if template is None:
            template = getattr(request.scope.get("route"), "path", None)  # starlette's, for all but the hot routes
        return {} if template is None else {"http.route": _CONVERTER.sub("", template)}

    def _parent(self, exchange: Exchange) -> Context:
        """Return the parent span from the client's W3C Trace Context headers."""
        headers = exchange.request.headers
        names = ("traceparent", "tracestate")
        carrier = {name: headers[name.encode()].decode("latin-1") for name in names if name.encode() in headers}
        return self._propagator.extract(carrier)

    def close(self) -> None:
        """Export the remaining spans, for at most a few seconds."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(_FLUSH_S)


def _attributes(exchange: Exchange) -> dict[str, str | int]:
    """Return the attributes of OpenTelemetry's HTTP conventions, and our own (`vit.*`)."""
    scope = exchange.request.scope
    attributes: dict[str, str | int] = {
        "http.request.method": scope["method"],
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "http.response.status_code": exchange.status,
        "http.request.body.size": exchange.request.received_bytes,
        "vit.request_id": exchange.request.id.decode(),
    }
    chosen = exchange.request.deployment
    if chosen is not None:
        attributes |= {"vit.model": chosen.name, "vit.model_version": chosen.version}
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
    """Yield the stages of a request; with several images only the common ones."""
    request = exchange.request
    if request.timeline.parsed_at is None:
        return
    yield _Stage("parse", request.timeline.arrived_at, request.timeline.parsed_at)
    outcome = exchange.outcomes[0] if len(exchange.outcomes) == 1 else None
    if not isinstance(outcome, ClassifierResult):
        return
    yield _Stage("cache", request.timeline.parsed_at, outcome.looked_up_at)
    answer = outcome.own_answer
    if answer is None:
        return
    # Processes exchange durations, not times, so count back from the response. The gap before is the wait for a thread.
    began_at = exchange.ended_at - answer.inference_s
    queued_at = began_at - answer.queue_s
    yield _Stage("decode", queued_at - outcome.decode_s, queued_at)
    yield _Stage("queue", queued_at, began_at)
    yield _Stage("inference", began_at, exchange.ended_at)
