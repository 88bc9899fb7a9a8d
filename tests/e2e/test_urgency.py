"""Two classes of urgency and deadlines on real servers whose model takes a known time, with a flood of low urgency."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from benchmarks.harness.open_loop import Client, Reply, percentiles
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, paused, serve, wait_until, worker_of
from tests.support.slow_server import BATCH_S, IMAGE_S

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_LOW = {"priority": "u=7"}
_FULL_PER_S = 32 / (BATCH_S + 32 * IMAGE_S)
"""Images that the slow server's model can run each second, in full batches."""

_SECONDS = 5.0
_QUEUE = 256
_WAITS = "inference_queue_wait_seconds_count"
_JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def slow_server() -> Iterator[RunningServer]:
    program = ("-m", "tests.support.slow_server")
    with serve(program=program, api_servers=1, cache_size=0, queue_size=_QUEUE) as running:
        yield running


def _samples(server: RunningServer, name: str) -> dict[frozenset[tuple[str, str]], float]:
    families = parse_text(server.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples if sample.name == name)
    return {frozenset(sample.labels.items()): sample.value for sample in samples}


def _total(server: RunningServer, name: str, **labels: str) -> float:
    """Return the sum of the samples that have these labels."""
    return sum(value for found, value in _samples(server, name).items() if labels.items() <= dict(found).items())


def _is_idle(server: RunningServer) -> bool:
    return _total(server, "inference_slots", state="free") == _QUEUE


def _infer_body(**parameters: int) -> bytes:
    data = [base64.b64encode(_SEVEN).decode()]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


async def _flood(port: int) -> tuple[list[Reply], list[Reply], list[Reply]]:
    """Send three times what the server can run, 80% of it of low urgency, and some of that with deadlines."""
    body = _infer_body(priority=2, timeout=50_000)
    per_s = 3 * _FULL_PER_S
    normal, low, hasty = await asyncio.gather(
        Client(port, _SEVEN).open_loop(0.2 * per_s, _SECONDS, 1),
        Client(port, _SEVEN, headers=b"priority: u=7\r\n").open_loop(0.7 * per_s, _SECONDS, 2),
        Client(port, body, "/v2/models/digits/infer").open_loop(0.1 * per_s, _SECONDS, 3),
    )
    return normal, low, hasty


def test_a_flood_of_low_urgency(slow_server: RunningServer) -> None:
    """Normal requests lose none and come first; low ones go on, and are refused with a time to come again."""
    before = _total(slow_server, "inference_images_total", worker="0")
    waits = {label: _total(slow_server, _WAITS, urgency=label) for label in ("normal", "low")}
    normal, low, hasty = asyncio.run(_flood(slow_server.port))
    assert {reply.status for reply in normal} == {200}
    assert {reply.status for reply in low} == {200, 503}
    assert {reply.status for reply in hasty} <= {200, 503, 504}
    assert all(reply.has_retry_after for reply in low if reply.status == 503)
    answered = [[reply for reply in replies if reply.status == 200] for replies in (normal, low, hasty)]
    medians = [percentiles([reply.seconds for reply in replies])["p50"] for replies in answered[:2]]
    assert medians[0] < medians[1]
    wait_until(lambda: _is_idle(slow_server))
    ran = _total(slow_server, "inference_images_total", worker="0") - before
    for label in ("normal", "low"):
        waits[label] = _total(slow_server, _WAITS, urgency=label) - waits[label]
    assert waits["normal"] == len(normal)
    assert waits["normal"] + waits["low"] == ran
    assert _total(slow_server, "inference_rejected_total", reason="overloaded", urgency="normal") == 0
    assert _total(slow_server, "inference_rejected_total", reason="overloaded", urgency="low") > 0


def test_an_image_whose_deadline_passes_in_the_queue_never_runs(slow_server: RunningServer) -> None:
    """Its client has the answer at the deadline, though no worker looks at the queue; the worker skips it later."""
    wait_until(lambda: _is_idle(slow_server))
    before = {name: _total(slow_server, name) for name in ("inference_images_total", "inference_skipped_total")}
    with paused(worker_of(slow_server)):
        for parameters in ({"timeout": 50_000}, {"timeout": 50_000, "priority": 2}):
            body = _infer_body(**parameters)
            response = slow_server.predict(
                body, "/v2/models/digits/infer", headers={"content-type": "application/json"}
            )
            assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        response = slow_server.predict(_SEVEN, headers={"prefer": "wait=1"})
        assert (response.status_code, response.headers["preference-applied"]) == (504, "wait=1")
    wait_until(lambda: _total(slow_server, "inference_skipped_total") - before["inference_skipped_total"] == 3)
    wait_until(lambda: _is_idle(slow_server))
    assert _total(slow_server, "inference_images_total") == before["inference_images_total"]


@pytest.mark.parametrize(
    ("headers", "applied"),
    [
        pytest.param({}, None, id="nothing is asked for"),
        pytest.param({"prefer": "wait=20"}, "wait=20", id="a wait"),
        pytest.param({"prefer": "respond-async, wait=20"}, "wait=20", id="among others"),
        pytest.param({"prefer": "wait=soon"}, None, id="malformed"),
        pytest.param({"priority": "u=high, ("}, None, id="a malformed priority"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/", "/predict/batch"])
def test_the_header_fields_on_every_path(
    slow_server: RunningServer, path: str, headers: dict[str, str], applied: str | None
) -> None:
    """What is malformed is ignored; a wait that is kept is said."""
    upload: dict[str, Any] = {"content": _SEVEN}
    if path == "/predict/batch":
        upload = {"files": [("files", _SEVEN)]}
    response = httpx.post(slow_server.url + path, headers=headers, timeout=60, **PLAIN_HTTP, **upload)
    assert response.status_code == 200
    assert response.headers.get("preference-applied") == applied


@pytest.mark.parametrize(
    ("headers", "label"),
    [({}, "normal"), ({"priority": "u=3"}, "normal"), (_LOW, "low"), ({"priority": "i, u=4"}, "low")],
)
def test_the_metrics_have_the_class(slow_server: RunningServer, headers: dict[str, str], label: str) -> None:
    """Of requests and of images in the queue."""
    names = ("inference_duration_seconds_count", "inference_queue_wait_seconds_count")

    def counts() -> list[float]:
        return [_total(slow_server, name, urgency=label) for name in names]

    before = counts()
    assert slow_server.predict(_SEVEN, headers=headers).status_code == 200
    wait_until(lambda: counts() == [count + 1 for count in before])
