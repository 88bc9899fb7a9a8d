"""Metrics of a real server, checked by Prometheus' own tools if they are installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from benchmarks.harness.servers import free_port
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, http_processes_of, serve, wait_until, workers_of
from vit_api import metrics

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_FRESH = {"cache-control": "no-cache"}
_PATIENCE_S = 60.0

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="needs Debian's package prometheus"
)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve() as running:
        yield running


class Scrape:
    """The samples of one scrape."""

    def __init__(self, server: RunningServer) -> None:
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in parse_text(server.get("/metrics").text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples[(name, frozenset(labels.items()))]

    def sum(self, name: str) -> float:
        return sum(value for (sample, _), value in self.samples.items() if sample == name)


def test_each_request_is_counted_once(server: RunningServer) -> None:
    """A miss, a hit, a corrupt image and a batch count by endpoint and status, with bytes and stages."""
    before = Scrape(server)
    assert server.predict(_SEVEN, headers=_FRESH).headers["x-cache"] == "miss"
    while server.predict(_SEVEN).headers["x-cache"] != "hit":  # each HTTP process must miss it once
        pass
    assert server.predict(_SEVEN[:200]).status_code == 400
    files = [("files", _SEVEN), ("files", b"no image")]
    assert (
        httpx.post(server.url + "/predict/batch", files=files, headers=_FRESH, timeout=60, **PLAIN_HTTP).status_code
        == 200
    )
    after = Scrape(server)

    def grown(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    singles = grown("inference_requests_total", endpoint="/predict", status="200")
    assert singles >= 2
    assert grown("inference_requests_total", endpoint="/predict", status="400") == 1
    assert grown("inference_requests_total", endpoint="/predict/batch", status="200") == 1
    assert grown("inference_duration_seconds_count", endpoint="/predict", urgency="normal") == singles + 1
    assert grown("inference_received_bytes_total", endpoint="/predict") == singles * len(_SEVEN) + 200
    assert grown("inference_rejected_total", reason="bad_image", urgency="normal") == 1
    assert grown("inference_rejected_total", reason="unsupported_image", urgency="normal") == 1
    assert grown("cache_hits_total") == 1
    ran = singles - 1 + 1  # all but the hit, and the batch's good image
    assert grown("inference_images_total", worker="0") == ran
    assert grown("inference_decode_seconds_count") == ran
    assert grown("inference_queue_wait_seconds_count", urgency="normal") == ran
    assert grown("inference_batch_size_sum") == ran
    assert grown("inference_batch_size_count") == grown("inference_batch_duration_seconds_count")


def test_a_client_that_leaves_is_counted(server: RunningServer) -> None:
    """A client that disconnects counts as status 499."""

    def left() -> float:
        return Scrape(server)("inference_requests_total", endpoint="/predict", status="499")

    before = left()
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(server.url + "/predict", content=_cut_off(), timeout=60, **PLAIN_HTTP)
    wait_until(lambda: left() == before + 1, _PATIENCE_S)


def _cut_off() -> Iterator[bytes]:
    yield _SEVEN
    raise httpx.ReadTimeout("the client gives up")


def test_all_documented_metrics_are_exported(server: RunningServer) -> None:
    """All but those of Redis, GPUs, thresholds, mirrors and lists of models; each is documented, each process named."""
    scrape = Scrape(server)
    names = {name for name, _ in scrape.samples}
    others = (*metrics.REDIS, *metrics.GPU, *metrics.MODERATION, *metrics.MIRROR, *metrics.SEVERAL)
    absent = {metric.name for metric in others}
    for metric in metrics.ALL:
        sample = f"{metric.name}_bucket" if metric.kind is metrics.Kind.HISTOGRAM else metric.name
        assert (sample in names) == (metric.name not in absent), metric.name
    known = {metric.name + end for metric in metrics.ALL for end in ("", "_bucket", "_sum", "_count")}
    assert names <= known
    for process in ("main", "http-0", "http-1", "worker-0"):
        assert scrape("process_resident_memory_bytes", process=process) > 10e6
    assert scrape("inference_slots", state="free") == 1024
    assert scrape("inference_ready") == scrape("inference_workers", state="ready") == 1


def test_openmetrics(server: RunningServer) -> None:
    """OpenMetrics is served to clients that accept it."""
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    response = httpx.get(server.url + "/metrics", headers=accept, timeout=30, **PLAIN_HTTP)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name for family in parse_openmetrics(response.text)}
    assert {"inference_requests", "inference_duration_seconds"} <= families


def test_counters_survive_restarts() -> None:
    """Counters continue after an HTTP process and a worker are killed, and restarts are counted."""
    with serve(cache_size=0) as server:
        for _ in range(20):
            server.predict(_SEVEN)
        before = Scrape(server)
        for victim in (*http_processes_of(server), *workers_of(server)):
            os.kill(victim, signal.SIGKILL)
        wait_until(lambda: _is_whole_again(server), _PATIENCE_S)
        for _ in range(10):
            assert server.predict(_SEVEN).status_code == 200
        after = Scrape(server)
    for name in ("inference_requests_total", "inference_decode_seconds_count", "inference_queue_wait_seconds_count"):
        assert (before.sum(name), after.sum(name)) == (20, 30), name
    assert after("inference_http_restarts_total") == 2
    assert after("inference_worker_restarts_total", worker="0") == 1


def _is_whole_again(server: RunningServer) -> bool:
    with contextlib.suppress(httpx.TransportError):
        scrape = Scrape(server)
        is_ready = scrape("inference_ready") == 1 and len(http_processes_of(server)) == 2
        return is_ready and scrape("inference_worker_restarts_total", worker="0") == 1
    return False


@needs_prometheus
def test_promtool_finds_no_fault(server: RunningServer) -> None:
    """Names, units, types and help pass promtool's checks."""
    text = server.get("/metrics").text
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@needs_prometheus
def test_prometheus_scrapes_it(server: RunningServer, tmp_path: Path) -> None:
    """A real Prometheus scrapes it, with the repository's alert rules loaded."""
    config = tmp_path / "prometheus.yml"
    rules = ROOT / "deploy" / "prometheus" / "alerts.yml"
    target = server.url.removeprefix("http://")
    config.write_text(
        f"global: {{scrape_interval: 1s}}\nrule_files: [{rules}]\n"
        f"scrape_configs: [{{job_name: vit-api, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    port = free_port()
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        server.predict(_SEVEN, headers=_FRESH)
        expected = Scrape(server).sum("inference_requests_total")
        wait_until(lambda: _ask(port, "sum(inference_requests_total)") == expected, _PATIENCE_S)
        assert _ask(port, "up") == 1
        names = {group["name"] for group in _get(port, "rules")["groups"]}
        assert names
        assert all(rule["health"] != "err" for group in _get(port, "rules")["groups"] for rule in group["rules"])
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


def _get(port: int, what: str, **parameters: str) -> dict[str, object]:
    response = httpx.get(f"http://127.0.0.1:{port}/api/v1/{what}", params=parameters, timeout=30, **PLAIN_HTTP)
    return response.json()["data"]


def _ask(port: int, query: str) -> float | None:
    """Return a query's value; None if there is none, or while Prometheus is starting."""
    with contextlib.suppress(httpx.TransportError, ValueError):
        result = _get(port, "query", query=query)["result"]
        return float(result[0]["value"][1]) if result else None
    time.sleep(0.05)
    return None
