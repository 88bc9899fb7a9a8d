"""Rate limits over HTTP, on a real server with two HTTP processes, and with a real Redis."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx
import pytest

from tests.support.redis_server import RedisServer, redis_server
from tests.support.server import ROOT, RunningServer, http_processes_of, paused, serve, wait_until
from vit_api.access.client_address import ClientAddresses
from vit_api.access.rate_limiter import Budgets, RateLimiter
from vit_api.access.rates import Rate
from vit_api.access.redis_counts import RedisCounts
from vit_api.errors import RateLimited
from vit_api.web.admission.rate_limits import RateLimits
from vit_api.web.requests import Admission, Request

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_SIX = 6


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run a server that takes six images from each client, and takes a test's word for who that is."""
    with serve(rate_limit=f"{_SIX}/day; 100/year", trusted_proxies="127.0.0.1") as running:
        yield running


def _as(address: str) -> dict[str, str]:
    return {"x-forwarded-for": address}


def _remaining(response: httpx.Response) -> int:
    return int(response.headers["ratelimit-remaining"])


def _batch(server: RunningServer, count: int, address: str) -> httpx.Response:
    files = [("files", _SEVEN)] * count
    return httpx.post(server.url + "/predict/batch", files=files, headers=_as(address), timeout=60)


def test_all_processes_share_a_budget(server: RunningServer) -> None:
    """Of forty requests at once, on connections that both processes accept, six are answered; hits count, too."""
    with ThreadPoolExecutor(8) as clients:
        headers = {"headers": _as("192.0.2.1")}
        responses = list(clients.map(lambda _: server.predict(_SEVEN, **headers), range(40)))
    assert Counter(response.status_code for response in responses) == {200: _SIX, 429: 40 - _SIX}
    remaining = [_remaining(response) for response in responses if response.status_code == 200]
    assert sorted(remaining) == list(range(_SIX))


def test_a_refusal_says_when_to_come_back(server: RunningServer) -> None:
    """In the headers, and in the one form that errors have."""
    response = [server.predict(_SEVEN, headers=_as("192.0.2.2")) for _ in range(_SIX + 1)][-1]
    assert (response.status_code, response.json()["code"]) == (429, "rate_limited")
    assert response.headers["retry-after"] == response.headers["ratelimit-reset"]
    assert 0 < int(response.headers["retry-after"]) <= 86_400
    assert (response.headers["ratelimit-limit"], _remaining(response)) == (str(_SIX), 0)
    assert response.headers["ratelimit-policy"] == "6;w=86400, 100;w=31104000"


def test_each_image_of_a_request_counts(server: RunningServer) -> None:
    """Four leave two; three more are refused as a whole, and cost the one that every request does."""
    address = "192.0.2.3"
    first, second, third = _batch(server, 4, address), _batch(server, 3, address), _batch(server, 1, address)
    assert [response.status_code for response in (first, second, third)] == [200, 429, 200]
    assert (_remaining(first), _remaining(third)) == (2, 0)
    assert second.json()["code"] == "rate_limited"


def test_each_image_of_a_tensor_counts(server: RunningServer) -> None:
    """As in any other request with several."""

    def infer(images: int) -> httpx.Response:
        data = [base64.b64encode(_SEVEN).decode()] * images
        tensor = {"name": "image", "datatype": "BYTES", "shape": [images], "data": data}
        body = {"inputs": [tensor]}
        return httpx.post(server.url + "/v2/models/digits/infer", json=body, headers=_as("192.0.2.9"), timeout=60)

    first, second, third = infer(4), infer(3), infer(1)
    assert [response.status_code for response in (first, second, third)] == [200, 429, 200]
    assert (_remaining(first), _remaining(third)) == (2, 0)
    assert second.json()["code"] == "rate_limited"
    assert "retry-after" in second.headers


def test_a_request_for_more_than_the_budget_is_told_so(server: RunningServer) -> None:
    """To wait wouldn't help."""
    response = _batch(server, 20, "192.0.2.4")
    assert response.status_code == 429
    assert "Send fewer images in one request." in response.json()["error"]


def test_failures_count(server: RunningServer) -> None:
    """A bad image cost its decoding, and its answer has the headers as well."""
    response = server.predict(b"no image", headers=_as("192.0.2.5"))
    assert (response.status_code, _remaining(response)) == (415, _SIX - 1)


@pytest.mark.parametrize("path", ["/health", "/info", "/docs", "/nowhere"])
def test_other_paths_are_not_limited(server: RunningServer, path: str) -> None:
    """Probes and operators are never turned away."""
    for _ in range(_SIX + 1):
        response = httpx.get(server.url + path, headers=_as("192.0.2.6"), timeout=30)
        assert response.status_code != 429
        assert "ratelimit-limit" not in response.headers


def test_a_refused_body_is_not_waited_for(server: RunningServer) -> None:
    """Not one byte of it is sent, and the answer is there."""
    _batch(server, _SIX, "192.0.2.7")
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 192.0.2.7\r\ncontent-length: 9999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 429 ")


def test_a_killed_process_leaves_its_counts(server: RunningServer) -> None:
    """Whoever had used half of a budget has half of it, after all HTTP processes were replaced."""
    with ThreadPoolExecutor(3) as clients:
        list(clients.map(lambda _: server.predict(_SEVEN, headers=_as("192.0.2.8")), range(3)))
    for pid in http_processes_of(server):
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: _is_replaced(server, pid))  # type: ignore[misc]
    statuses: list[int] = []

    def is_refused() -> bool:
        with contextlib.suppress(httpx.TransportError):  # the new processes may not listen yet
            statuses.append(server.predict(_SEVEN, headers=_as("192.0.2.8")).status_code)
        return 429 in statuses

    wait_until(is_refused)
    assert statuses == [200, 200, 200, 429]


def _is_replaced(server: RunningServer, pid: int) -> bool:
    pids = http_processes_of(server)
    return pid not in pids and len(pids) == 2


def test_limits_are_off_by_default(digits_server: RunningServer) -> None:
    """No header speaks of them."""
    assert not any(name.startswith("ratelimit") for name in digits_server.predict(_SEVEN).headers)


def test_the_description_says_what_is_limited(server: RunningServer, digits_server: RunningServer) -> None:
    """Where there are limits."""
    paths = server.get("/openapi.json").json()["paths"]
    limited = {path for path in paths for operation in paths[path].values() if "429" in operation["responses"]}
    infer = {"/v2/models/{model_name}/infer", "/v2/models/{model_name}/versions/{version}/infer"}
    assert limited == {"/", "/predict", "/predict/batch"} | infer
    assert '"429"' not in digits_server.get("/openapi.json").text


def test_who_has_a_key_is_counted_by_it() -> None:
    """Not by the address, which several may share, or one may change."""
    limits = RateLimits(RateLimiter(Budgets([Rate(1, 86_400)], 1), 0), ClientAddresses(), [Rate(1, 86_400)])

    async def status(address: str, key_digest: bytes) -> int:
        scope = {
            "method": "POST",
            "path": "/predict",
            "query_string": b"",
            "headers": [],
            "client": (address, 1),
        }
        request = Request(scope, b"id", arrived_at=0.0, timeout_s=30.0)
        request.admission = Admission(key_digest)
        try:
            await limits.charge(request)
        except RateLimited as error:
            return error.status
        return 200

    async def statuses() -> list[int]:
        ones = [("192.0.2.1", b"one"), ("192.0.2.2", b"one"), ("192.0.2.1", b"two")]
        return [await status(*one) for one in [*ones, ("192.0.2.1", b""), ("192.0.2.2", b"")]]

    assert asyncio.run(statuses()) == [200, 429, 200, 200, 200]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Run a Redis."""
    with redis_server() as running:
        yield running


_PATIENT_S = 20.0


@contextlib.asynccontextmanager
async def _limiters(url: str, *waits_s: float) -> AsyncIterator[list[RateLimiter]]:
    """Run the limiters of several servers whose counts are in one Redis: ten images a day."""
    counts = [RedisCounts(url, wait_s) for wait_s in waits_s]
    for one in counts:
        one.start()
    try:
        yield [RateLimiter(Budgets([Rate(10, 86_400)], 1), 0, one) for one in counts]
    finally:
        for one in counts:
            await one.stop()


async def _is_refused(limiter: RateLimiter, client: str, amount: int = 1) -> bool:
    return (await limiter.take(client, amount)).is_refused


def _counted(redis: RedisServer, client: str) -> list[int]:
    """Return what Redis has for a client, and check that it will forget it."""
    names = list(redis.client.scan_iter(f"vit-api-limits:{client}/*"))
    assert all(0 < redis.client.ttl(name) <= 86_400 for name in names)
    return [int(redis.client.get(name)) for name in names]


def test_servers_share_a_budget_in_redis(redis: RedisServer) -> None:
    """Of thirty at once on two servers ten are allowed; Redis has ten, and will forget them."""

    async def run() -> int:
        async with _limiters(redis.url, _PATIENT_S, _PATIENT_S) as (one, two):
            refused = await asyncio.gather(
                *(_is_refused(server, "several") for server in (one, two) for _ in range(15))
            )
            return refused.count(False)

    assert asyncio.run(run()) == 10
    assert _counted(redis, "several") == [10]


def test_what_redis_refuses_is_taken_back(redis: RedisServer) -> None:
    """Five don't fit, and leave room for four."""

    async def run() -> list[bool]:
        async with _limiters(redis.url, _PATIENT_S, _PATIENT_S) as (one, two):
            return [
                await _is_refused(one, "back", 6),
                await _is_refused(two, "back", 5),
                await _is_refused(two, "back", 4),
                await _is_refused(one, "back"),
            ]

    assert asyncio.run(run()) == [False, True, False, True]
    assert _counted(redis, "back") == [10]


def test_a_slow_redis_holds_up_nobody(redis: RedisServer) -> None:
    """The server counts for itself; what Redis was asked to count it counts when it can."""

    async def run() -> None:
        async with _limiters(redis.url, 0.01) as (limiter,):
            with paused(redis.pid):
                refused = [await _is_refused(limiter, "slow") for _ in range(12)]
            assert refused == [False] * 10 + [True] * 2
            with anyio.fail_after(30):
                while not _counted(redis, "slow"):
                    await limiter.take("another", 1)
                    await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_dead_redis_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """The server counts for itself and says so once; Redis counts again as soon as it is back."""

    async def run(redis: RedisServer) -> None:
        async with _limiters(redis.url, _PATIENT_S) as (limiter,):
            assert not await _is_refused(limiter, "before")
            redis.kill()
            refused = [await _is_refused(limiter, "meanwhile") for _ in range(12)]
            assert refused == [False] * 10 + [True] * 2
            redis.start()
            with anyio.fail_after(30):
                while not _counted(redis, "after"):
                    await limiter.take("after", 0)
                    await asyncio.sleep(0.01)

    with redis_server() as mortal, caplog.at_level(logging.INFO, "vit_api.access.redis_counts"):
        asyncio.run(run(mortal))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_redis_behind_a_unix_socket() -> None:
    """`limits` calls its address otherwise."""
    with tempfile.TemporaryDirectory() as folder, redis_server("--unixsocket", f"{folder}/redis") as redis:

        async def run() -> None:
            async with _limiters(f"unix://{folder}/redis", _PATIENT_S) as (limiter,):
                assert not await _is_refused(limiter, "local", 3)

        asyncio.run(run())
        assert _counted(redis, "local") == [3]


def test_a_server_counts_in_its_redis(redis: RedisServer) -> None:
    """The parts are joined."""
    with serve(api_servers=1, redis_url=redis.url, rate_limit="10/day") as running:
        assert running.predict(_SEVEN).headers["ratelimit-remaining"] == "9"
        wait_until(lambda: _counted(redis, "127.0.0.1") == [1])
