"""A server's log: its format, its access lines, and what it must not contain."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, serve, wait_until

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_SECRET = "this-must-not-be-logged"


def _requests(server: RunningServer) -> list[dict[str, Any]]:
    """Return the access lines except those of probes, and check that every line of the log is JSON."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    ours = (line for line in lines if line["logger"] == "vit_api.web.observers.access_log")
    return [line for line in ours if "/health" not in line["message"]]


def test_each_request_has_an_access_line() -> None:
    """Access lines have the stages; LitServe's and uvicorn's lines are JSON as well."""
    with serve(access_log=1, log_format="json", log_level="debug", api_servers=1) as server:
        server.predict(_SEVEN, headers={"x-request-id": "first"})
        server.predict(_SEVEN, headers={"x-request-id": "second", "authorization": f"Bearer {_SECRET}"})
        server.predict(_SEVEN[:100], headers={"x-request-id": "third", "x-api-key": _SECRET})
        files = [("files", _SEVEN), ("files", b"no image")]
        httpx.post(
            server.url + "/predict/batch", files=files, headers={"x-request-id": "fourth"}, timeout=60, **PLAIN_HTTP
        )
        httpx.get(server.url + f"/a%0ab?key={_SECRET}", headers={"x-request-id": "fifth"}, timeout=60, **PLAIN_HTTP)
        wait_until(lambda: len(_requests(server)) == 5)
        first, second, third, fourth, fifth = _requests(server)
        text = server.log.read_text()
    assert (first["request_id"], first["message"], first["bytes"]) == ("first", "POST /predict 200", len(_SEVEN))
    assert (first["method"], first["path"], first["client"]) == ("POST", "/predict", "127.0.0.1")
    assert "user_agent" not in first
    assert (first["cache"], first["batch_size"]) == ("miss", 1)
    stages_ms = [first[f"{stage}_ms"] for stage in ("parse", "decode", "queue", "inference")]
    assert all(stage_ms > 0 for stage_ms in stages_ms)
    assert sum(stages_ms) <= first["total_ms"]
    assert (second["cache"], "queue_ms" in second) == ("hit", False)
    assert (third["status"], third["error"]) == (400, "bad_image")
    assert (fourth["images"], fourth["hits"], fourth["errors"]) == (2, 1, 1)
    assert (fifth["message"], fifth["status"]) == ("GET /a\\nb 404", 404)
    assert _SECRET not in text
    assert '"logger": "uvicorn.error"' in text


def test_access_lines_as_text() -> None:
    """Access lines are logged if the setting is on, whatever the log level; the client is that of a trusted proxy."""
    settings = {"access_log_user_agent": 1, "trusted_proxies": "127.0.0.1", "log_level": "error", "api_servers": 1}
    with serve(access_log=1, **settings) as server:
        headers = {"x-forwarded-for": "203.0.113.9", "user-agent": "a b=c"}
        server.predict(_SEVEN, headers=headers)
        server.predict(_SEVEN, "/nowhere")
        wait_until(lambda: "/nowhere 404" in server.log.read_text())
        text = server.log.read_text()
    assert "POST /predict 200 request_id=" in text
    assert 'client=203.0.113.9 user_agent="a b=c" status=200' in text


def test_a_ready_server_says_so_once(digits_server: RunningServer) -> None:
    """One line has the address, the model, the device and the processes; uvicorn's own lines are left out."""
    wait_until(lambda: "Ready: " in digits_server.log.read_text())
    text = digits_server.log.read_text()
    assert text.count(f"Ready: {digits_server.url} (digits, cpu, 2 HTTP processes)\n") == 1
    assert text.count("Ready: ") == 1
    assert "uvicorn" not in text


def test_a_burst_of_refusals_is_logged_once() -> None:
    """All HTTP processes together log one warning, which has the count and the cause."""
    with serve(api_keys="a-long-enough-key", api_servers=2) as server:
        statuses = {server.predict(_SEVEN).status_code for _ in range(30)}
        wait_until(lambda: "Refused" in server.log.read_text())
        text = server.log.read_text()
    assert statuses == {401}
    (line,) = [line for line in text.splitlines() if "Refused" in line]
    assert " WARNING " in line
    assert "unauthorized" in line


def test_access_lines_are_off_by_default(digits_server: RunningServer) -> None:
    """By default there are no access lines."""
    digits_server.predict(_SEVEN)
    digits_server.predict(_SEVEN, "/nowhere")
    wait_until(lambda: "Ready: " in digits_server.log.read_text())
    text = digits_server.log.read_text()
    assert "Ready: " in text
    assert "POST" not in text
    assert "/nowhere" not in text
