"""Rate limits over HTTP, on a real server with two HTTP processes, and with a real Redis."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.redis_server import redis_server
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, http_processes_of, serve, wait_until

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_SIX = 6


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run a server that allows six images per client, and trusts the tests' X-Forwarded-For."""
    with serve(rate_limit=f"{_SIX}/day; 100/year", trusted_proxies="127.0.0.1") as running:
        yield running


def _as(address: str) -> dict[str, str]:
    return {"x-forwarded-for": address}


def _remaining(response: httpx.Response) -> int:
    return int(response.headers["ratelimit-remaining"])


def _batch(server: RunningServer, count: int, address: str) -> httpx.Response:
    files = [("files", _SEVEN)] * count
    return httpx.post(server.url + "/predict/batch", files=files, headers=_as(address), timeout=60, **PLAIN_HTTP)


def test_all_processes_share_a_budget(server: RunningServer) -> None:
    """Of forty concurrent requests to two processes, six succeed; cache hits count as well."""
    with ThreadPoolExecutor(8) as clients:
        headers = {"headers": _as("192.0.2.1")}
        responses = list(clients.map(lambda _: server.predict(_SEVEN, **headers), range(40)))
    assert Counter(response.status_code for response in responses) == {200: _SIX, 429: 40 - _SIX}
    remaining = [_remaining(response) for response in responses if response.status_code == 200]
    assert sorted(remaining) == list(range(_SIX))


def test_a_refusal_has_retry_after(server: RunningServer) -> None:
    """The headers say when to retry; the error has the API's form."""
    response = [server.predict(_SEVEN, headers=_as("192.0.2.2")) for _ in range(_SIX + 1)][-1]
    assert (response.status_code, response.json()["code"]) == (429, "rate_limited")
    assert response.headers["retry-after"] == response.headers["ratelimit-reset"]
    assert 0 < int(response.headers["retry-after"]) <= 86_400
    assert (response.headers["ratelimit-limit"], _remaining(response)) == (str(_SIX), 0)
    assert response.headers.get_list("ratelimit-policy")[0] == "6;w=86400, 100;w=31104000"


def test_each_image_of_a_request_counts(server: RunningServer) -> None:
    """Four images leave two; a request with three more is refused, and costs one."""
    address = "192.0.2.3"
    first, second, third = _batch(server, 4, address), _batch(server, 3, address), _batch(server, 1, address)
    assert [response.status_code for response in (first, second, third)] == [200, 429, 200]
    assert (_remaining(first), _remaining(third)) == (2, 0)
    assert second.json()["code"] == "rate_limited"


def test_each_image_of_a_tensor_counts(server: RunningServer) -> None:
    """Each image of a tensor counts, as in other requests."""

    def infer(images: int) -> httpx.Response:
        data = [base64.b64encode(_SEVEN).decode()] * images
        tensor = {"name": "image", "datatype": "BYTES", "shape": [images], "data": data}
        body = {"inputs": [tensor]}
        return httpx.post(
            server.url + "/v2/models/digits/infer", json=body, headers=_as("192.0.2.9"), timeout=60, **PLAIN_HTTP
        )

    first, second, third = infer(4), infer(3), infer(1)
    assert [response.status_code for response in (first, second, third)] == [200, 429, 200]
    assert (_remaining(first), _remaining(third)) == (2, 0)
    assert second.json()["code"] == "rate_limited"
    assert "retry-after" in second.headers


def test_a_request_over_the_whole_budget_says_so(server: RunningServer) -> None:
    """The error asks for fewer images, since waiting would not help."""
    response = _batch(server, 20, "192.0.2.4")
    assert response.status_code == 429
    assert "Send fewer images in one request." in response.json()["error"]


def test_failures_count(server: RunningServer) -> None:
    """A corrupt image counts, since it was decoded; its response has the rate limit's headers."""
    response = server.predict(b"no image", headers=_as("192.0.2.5"))
    assert (response.status_code, _remaining(response)) == (415, _SIX - 1)


@pytest.mark.parametrize("path", ["/health", "/info", "/docs", "/nowhere"])
def test_other_paths_are_not_limited(server: RunningServer, path: str) -> None:
    """Probes and operator paths are never limited."""
    for _ in range(_SIX + 1):
        response = httpx.get(server.url + path, headers=_as("192.0.2.6"), timeout=30, **PLAIN_HTTP)
        assert response.status_code != 429
        assert "ratelimit-limit" not in response.headers


def test_a_request_over_the_limit_is_refused_before_the_body(server: RunningServer) -> None:
    """The response arrives before any of the body is sent."""
    _batch(server, _SIX, "192.0.2.7")
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 192.0.2.7\r\ncontent-length: 9999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 429 ")


def test_counts_survive_killed_processes(server: RunningServer) -> None:
    """A client that has used half of its budget has the other half after all processes restart."""
    with ThreadPoolExecutor(3) as clients:
        list(clients.map(lambda _: server.predict(_SEVEN, headers=_as("192.0.2.8")), range(3)))
    for pid in http_processes_of(server):
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: _is_replaced(server, pid))  # type: ignore[misc]
    statuses: list[int] = []

    def is_refused() -> bool:
        with contextlib.suppress(httpx.TransportError):  # until the new processes listen
            statuses.append(server.predict(_SEVEN, headers=_as("192.0.2.8")).status_code)
        return 429 in statuses

    wait_until(is_refused)
    assert statuses == [200, 200, 200, 429]


def _is_replaced(server: RunningServer, pid: int) -> bool:
    pids = http_processes_of(server)
    return pid not in pids and len(pids) == 2


def test_limits_are_off_by_default(digits_server: RunningServer) -> None:
    """Responses have no `RateLimit` headers."""
    assert not any(name.startswith("ratelimit") for name in digits_server.predict(_SEVEN).headers)


def test_the_description_says_what_is_limited(server: RunningServer, digits_server: RunningServer) -> None:
    """With limits, the description has the 429 of the limited paths."""
    paths = server.get("/openapi.json").json()["paths"]
    limited = {path for path in paths for operation in paths[path].values() if "429" in operation["responses"]}
    infer = {"/v2/models/{model_name}/infer", "/v2/models/{model_name}/versions/{version}/infer"}
    assert limited == {"/", "/predict", "/predict/batch", "/v1/embeddings", "/v1/moderations"} | infer
    assert '"429"' not in digits_server.get("/openapi.json").text


def test_a_server_counts_in_its_redis() -> None:
    """The counts of a server with `redis_url` and `rate_limit` are in that Redis."""
    with redis_server() as redis, serve(api_servers=1, redis_url=redis.url, rate_limit="10/day") as running:
        assert running.predict(_SEVEN).headers["ratelimit-remaining"] == "9"
        names = redis.client.scan_iter
        wait_until(lambda: [redis.client.get(name) for name in names("vit-api-limits:127.0.0.1/*")] == [b"1"])
