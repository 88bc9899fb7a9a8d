"""API keys on a real server: which paths require one, and which keys are accepted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
from collections.abc import Iterator

import anyio
import httpx
import pytest

from tests.support.clients import post
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, serve
from vit_api.access.api_keys import digest_of

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_PLAIN = "a-plain-key"
_HASHED = "a-key-that-is-hashed"
_OPERATOR = "the-operators-key"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run a server with a plain key, a digest and an operator's key."""
    digest = hashlib.sha256(_HASHED.encode()).hexdigest().upper()
    with serve(api_keys=f"{_PLAIN}, sha256:{digest}", operator_key=_OPERATOR) as running:
        yield running


def test_refusals_are_counted(server: RunningServer) -> None:
    """A 401 is counted like any other response."""
    server.predict(_SEVEN)
    metrics = httpx.get(server.url + "/metrics", headers={"x-api-key": _PLAIN}, timeout=30, **PLAIN_HTTP).text
    (count,) = re.findall(r'inference_requests_total{endpoint="/predict",status="401"} ([0-9.]+)', metrics)
    assert float(count) >= 1


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"authorization": f"Bearer {_PLAIN}"}, id="bearer"),
        pytest.param({"authorization": f"bearer {_HASHED}"}, id="key of a digest"),
        pytest.param({"x-api-key": _HASHED}, id="X-API-Key"),
        pytest.param({"x-api-key": _OPERATOR}, id="operator's key"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/info", "/nowhere"])
def test_a_valid_key_is_accepted_everywhere(server: RunningServer, path: str, headers: dict[str, str]) -> None:
    """Each key works in each header, on hot routes and on others."""
    method = "POST" if path == "/predict" else "GET"
    response = httpx.request(method, server.url + path, content=_SEVEN, headers=headers, timeout=60, **PLAIN_HTTP)
    assert response.status_code == (404 if path == "/nowhere" else 200)


@pytest.mark.parametrize(
    "path",
    ["/predict", "/predict/batch", "/v2/models/digits/infer", "/v2", "/info", "/metrics", "/nowhere", "/docs/../info"],
)
@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        pytest.param({}, 'Bearer realm="vit-api"', id="none"),
        pytest.param({"x-api-key": "wrong-key"}, 'Bearer realm="vit-api", error="invalid_token"', id="wrong"),
        pytest.param({"authorization": "Bearer \xff"}, 'Bearer realm="vit-api", error="invalid_token"', id="not ASCII"),
        pytest.param({"authorization": f"Basic {_PLAIN}"}, 'Bearer realm="vit-api"', id="another scheme"),
    ],
)
def test_requests_without_a_valid_key_are_refused(
    server: RunningServer, path: str, headers: dict[str, str], challenge: str
) -> None:
    """The 401 says how to send a key, in the API's form, and does not repeat what was sent."""
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    response = httpx.post(server.url + path, content=_SEVEN, headers=raw, timeout=60, **PLAIN_HTTP)  # type: ignore[arg-type]
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == challenge
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "wrong-key" not in response.text


@pytest.mark.parametrize(
    "path",
    [
        *("/health", "/health/ready", "/health/live", "/v2/health/ready", "/v2/health/live"),
        *("/docs", "/docs/static/swagger-ui.css", "/openapi.json", "/", "/page/page.js"),
    ],
)
def test_paths_without_a_key(server: RunningServer, path: str) -> None:
    """Probes and pages need no key, since a browser opens them before it can send one."""
    assert server.get(path).status_code == 200


def test_only_the_operators_key_clears(server: RunningServer) -> None:
    """The operator's key works in either header; a client's key does not."""
    path = server.url + "/cache/clear"
    for headers in ({"x-api-key": _OPERATOR}, {"authorization": f"Bearer {_OPERATOR}"}):
        assert httpx.post(path, headers=headers, timeout=30, **PLAIN_HTTP).status_code == 200
    for headers in ({}, {"x-api-key": _PLAIN}):
        assert httpx.post(path, headers=headers, timeout=30, **PLAIN_HTTP).status_code == 401


def test_a_missing_key_is_refused_before_the_body(server: RunningServer) -> None:
    """The response arrives before any of the body is sent, and without `100 Continue`."""
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999\r\nexpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


@pytest.mark.anyio
async def test_a_refused_upload_leaves_the_connection_usable(server: RunningServer) -> None:
    """The next request on it gets its own response."""
    with anyio.fail_after(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        replies = [await post(reader, writer, "/predict", bytes(3_000_000)) for _ in range(2)]
        writer.close()
        await writer.wait_closed()
    assert [reply.status for reply in replies] == [401, 401]


def test_keys_are_shown_nowhere(server: RunningServer) -> None:
    """Neither `/info` nor the log has a key or a digest."""
    shown = server.get("/openapi.json").text + server.log.read_text()
    shown += httpx.get(server.url + "/info", headers={"x-api-key": _PLAIN}, timeout=30, **PLAIN_HTTP).text
    for key in (_PLAIN, _HASHED, _OPERATOR):
        assert key not in shown
        assert digest_of(key).hex() not in shown.lower()


def test_the_description_says_which_paths_need_a_key(server: RunningServer, digits_server: RunningServer) -> None:
    """`/docs` has a button for the key; without keys only the operator's path does."""
    schema = server.get("/openapi.json").json()
    assert {(scheme["type"]) for scheme in schema["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    secured = _secured(schema)
    assert {"/v2", "/v2/models/{model_name}/infer"} < secured
    assert not any(path.startswith("/v2/health") for path in secured)
    others = {path for path in secured if not path.startswith("/v2")}
    assert others == {
        "/",
        "/predict",
        "/predict/batch",
        "/v1/embeddings",
        "/v1/moderations",
        "/info",
        "/metrics",
        "/cache/clear",
    }
    assert "401" in schema["paths"]["/predict"]["post"]["responses"]
    assert _secured(digits_server.get("/openapi.json").json()) == {"/cache/clear"}


def _secured(schema: dict) -> set[str]:
    names = set(schema["components"]["securitySchemes"])
    secured = set()
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if "security" in operation:
                assert {name for item in operation["security"] for name in item} == names, json.dumps(operation)
                secured.add(path)
    return secured
