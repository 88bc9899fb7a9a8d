"""Traces of a real server, as received by a collector."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs requirements-otel.txt")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.harness.servers import free_port
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, serve, wait_until

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_TRACE, _PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_UNSAMPLED, _AFTER = "1af7651916cd43dd8448eb211c80319c", "2af7651916cd43dd8448eb211c80319c"


class Collector(ThreadingHTTPServer):
    """Receives traces as OTLP over HTTP."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Any] = []
        self.services: set[str] = set()

    def of_trace(self, trace: str) -> dict[str, Any]:
        """Return a trace's spans by name."""
        return {span.name: span for span in self.spans if span.trace_id.hex() == trace}


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            self.server.services.add(about["service.name"])
            self.server.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Run a collector, and configure servers started from now on to use it."""
    with Collector() as running, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def server(collector: Collector) -> Iterator[RunningServer]:
    """Run a server that sends its traces to the collector."""
    with serve(traces=1, api_servers=1) as running:
        yield running


def _attributes(span: Any) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


def test_a_request_continues_its_clients_trace(server: RunningServer, collector: Collector) -> None:
    """The request's span is a child of the client's, and its stages are children of it, in order."""
    server.predict(_SEVEN, headers={"traceparent": f"00-{_TRACE}-{_PARENT}-01", "cache-control": "no-cache"})
    wait_until(lambda: "POST /predict" in collector.of_trace(_TRACE))
    spans = collector.of_trace(_TRACE)
    root = spans.pop("POST /predict")
    assert root.parent_span_id.hex() == _PARENT
    assert list(spans) == ["parse", "cache", "decode", "queue", "inference"]
    ends = [root.start_time_unix_nano]
    for span in spans.values():
        assert span.parent_span_id == root.span_id
        assert ends[-1] <= span.start_time_unix_nano <= span.end_time_unix_nano
        ends.append(span.end_time_unix_nano)
    assert ends[-1] <= root.end_time_unix_nano
    attributes = _attributes(root)
    assert (attributes["http.response.status_code"], attributes["vit.cache"]) == (200, "miss")
    assert collector.services == {"vit-api"}


def test_an_unsampled_trace_stays_unsampled(server: RunningServer, collector: Collector) -> None:
    """The server follows the client's sampling decision."""
    server.predict(_SEVEN, headers={"traceparent": f"00-{_UNSAMPLED}-{_PARENT}-00"})
    server.predict(_SEVEN, headers={"traceparent": f"00-{_AFTER}-{_PARENT}-01"})
    wait_until(lambda: "POST /predict" in collector.of_trace(_AFTER))
    assert not collector.of_trace(_UNSAMPLED)


def test_every_request_has_a_trace(collector: Collector) -> None:
    """Hits lack the skipped stages, failures have their code; remaining spans are sent at the stop."""
    before = len(collector.spans)
    with serve(traces=1, api_servers=1) as server:
        for upload in (_SEVEN, _SEVEN, _SEVEN[:100]):
            server.predict(upload)
    spans = collector.spans[before:]
    roots = [span for span in spans if span.name == "POST /predict"]
    assert len(roots) == 3
    hit = next(span for span in roots if _attributes(span).get("vit.cache") == "hit")
    assert sorted(collector.of_trace(hit.trace_id.hex())) == ["POST /predict", "cache", "parse"]
    assert [_attributes(span).get("error.type") for span in roots].count("bad_image") == 1
    assert {_attributes(span)["http.route"] for span in roots} == {"/predict"}
    assert any(span.name == "GET" and _attributes(span)["url.path"] == "/health" for span in spans)


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        pytest.param("POST", "/", "/", id="hot"),
        pytest.param("POST", "/v2/models/digits/infer", "/v2/models/{model_name}/infer", id="hot, of a model"),
        pytest.param("GET", "/health", "/health", id="probe"),
        pytest.param("HEAD", "/info", "/info", id="HEAD"),
        pytest.param("GET", "/v2/models/digits", "/v2/models/{model_name}", id="of a model"),
        pytest.param("GET", "/nowhere", None, id="unknown"),
    ],
)
def test_the_template_of_the_path(
    server: RunningServer, collector: Collector, method: str, path: str, route: str | None
) -> None:
    """`http.route` groups requests; a path without a route has none."""
    trace = os.urandom(16).hex()
    httpx.request(
        method, server.url + path, headers={"traceparent": f"00-{trace}-{_PARENT}-01"}, timeout=30, **PLAIN_HTTP
    )
    wait_until(lambda: bool(collector.of_trace(trace)))
    root = next(span for span in collector.of_trace(trace).values() if span.parent_span_id.hex() == _PARENT)
    assert _attributes(root).get("http.route") == route


def test_an_unreachable_collector_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are served, and the server stops in time."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with serve(traces=1, api_servers=1) as server:
        for _ in range(20):
            assert server.predict(_SEVEN).status_code == 200
