"""Paths and targets as clients write them, on a real server."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.support.door_bench import read_all, split_answers
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, serve

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_KEY = "a-key-of-sixteen-characters-or-more"


@pytest.fixture(scope="module")
def server_with_keys() -> Iterator[RunningServer]:
    """Run a server that requires a key."""
    with serve(api_servers=1, api_keys=_KEY) as running:
        yield running


@pytest.mark.parametrize("path", ["/predict/", "//predict", "//predict//", "/predict%2F", "//", "/predict/?top_k=1"])
def test_paths_that_classify_are_answered(digits_server: RunningServer, path: str) -> None:
    """A redirect would make the client send its image twice, or without a body."""
    response = digits_server.predict(_SEVEN, path)
    assert response.status_code == 200, response.text
    assert '"7"' in response.text


@pytest.mark.parametrize("path", ["/predict/batch/", "//predict//batch"])
def test_several_images(digits_server: RunningServer, path: str) -> None:
    """The same for batches."""
    response = httpx.post(digits_server.url + path, files=[("files", _SEVEN)] * 2, timeout=30, **PLAIN_HTTP)
    assert (response.status_code, len(response.json())) == (200, 2)


@pytest.mark.parametrize(
    "path", ["/v2/models/digits/infer/", "/v2//models/digits//infer", "/v2/models/digits/versions/1//infer"]
)
def test_the_open_inference_protocol(digits_server: RunningServer, path: str) -> None:
    """The same for /v2."""
    data = base64.b64encode(_SEVEN).decode()
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [data]}
    response = httpx.post(digits_server.url + path, json={"inputs": [image]}, timeout=30, **PLAIN_HTTP)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", ["/health/", "//health/live", "/health//ready/", "/v2/health/ready/"])
def test_probes_are_answered(server_with_keys: RunningServer, path: str) -> None:
    """Load balancers don't follow redirects; probes need no key either way."""
    assert server_with_keys.get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "plain"),
    [
        ("GET", "/docs/", "/docs"),
        ("GET", "/info//", "/info"),
        ("HEAD", "//metrics", "/metrics"),
        ("GET", "/v2/models/digits/", "/v2/models/digits"),
        ("GET", "/v2//models/digits/config/?a=b", "/v2/models/digits/config?a=b"),
        ("POST", "/cache/clear/", "/cache/clear"),
        ("GET", "/predict/", "/predict"),
    ],
)
def test_all_others_point_to_the_path(digits_server: RunningServer, method: str, path: str, plain: str) -> None:
    """So that relative links work, and a rule of a proxy for one path holds."""
    response = httpx.request(method, digits_server.url + path, timeout=30, **PLAIN_HTTP)
    assert response.status_code == 308
    assert str(response.next_request.url) == digits_server.url + plain  # type: ignore[union-attr]
    assert "x-request-id" in response.headers


@pytest.mark.parametrize("path", ["/nowhere/", "//evil.example/", "/v2/models/other/infer/"])
def test_unknown_paths_stay_unknown(digits_server: RunningServer, path: str) -> None:
    """Unknown paths are not redirected."""
    response = digits_server.predict(_SEVEN, path, follow_redirects=True)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/predict/", "//predict", "//cache/clear", "/metrics/"])
def test_keys_hold_for_mistyped_paths(server_with_keys: RunningServer, path: str) -> None:
    """What needs a key needs one however its path is written."""
    refused = server_with_keys.predict(_SEVEN, path, follow_redirects=True)
    assert refused.status_code in (401, 403)
    if "predict" in path:
        assert server_with_keys.predict(_SEVEN, path, headers={"x-api-key": _KEY}).status_code == 200


_POST = b"POST %b HTTP/1.%d\r\n%bcontent-length: %d\r\n\r\n%b"


def _ask(server: RunningServer, data: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        (answer,) = split_answers(read_all(connection))
        return answer


@pytest.mark.parametrize(
    ("target", "version", "host", "status"),
    [
        pytest.param(b"http://other:80/predict", 1, b"host: x\r\n", 200, id="absolute-form"),
        pytest.param(b"HTTP://x/predict/?top_k=1", 1, b"host: x\r\n", 200, id="absolute-form, mistyped"),
        pytest.param(b"/predict", 1, b"", 400, id="no Host"),
        pytest.param(b"http://x/predict", 1, b"", 400, id="absolute-form without Host"),
        pytest.param(b"/predict", 1, b"host: a\r\nhost: a\r\n", 400, id="two Hosts"),
        pytest.param(b"/predict", 1, b"host:\r\n", 200, id="empty Host"),
        pytest.param(b"/predict", 1, b"host: [::1]:80\r\n", 200, id="IPv6"),
        pytest.param(b"/predict", 1, b"host: my_service.local:7860\r\n", 200, id="underscore"),
        pytest.param(b"/predict", 0, b"", 200, id="HTTP/1.0 without Host"),
        pytest.param(b"/predict", 0, b"host: a\r\nhost: b\r\n", 400, id="HTTP/1.0 with two Hosts"),
        pytest.param(b"*", 1, b"host: x\r\n", 400, id="asterisk"),
        pytest.param(b"predict", 1, b"host: x\r\n", 400, id="no slash"),
    ],
)
def test_targets_and_hosts(digits_server: RunningServer, target: bytes, version: int, host: bytes, status: int) -> None:
    """RFC 9112, section 3.2."""
    assert _ask(digits_server, _POST % (target, version, host, len(_SEVEN), _SEVEN))[0] == status


@pytest.mark.parametrize("target", [b"*", b"http://x/*"])
def test_options_for_the_server(server_with_keys: RunningServer, target: bytes) -> None:
    """`OPTIONS *` is a ping, which needs no key; RFC 9110, section 9.3.7."""
    status, headers, body = _ask(server_with_keys, b"OPTIONS %b HTTP/1.1\r\nhost: x\r\n\r\n" % target)
    if target == b"*":
        assert (status, headers[b"allow"], body) == (204, b"GET, HEAD, POST, OPTIONS", b"")
    else:
        assert status == 401  # a path that only looks like it
