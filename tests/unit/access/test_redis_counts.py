"""Rate-limit counts that several servers share in a real Redis, and behaviour while it is down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from tests.support.redis_server import RedisServer, redis_server
from tests.support.server import paused
from tests.support.waiting import LONG_S
from vit_api.access.rate_limiter import Budgets, RateLimiter
from vit_api.access.rates import Rate
from vit_api.access.redis_counts import RedisCounts

pytestmark = pytest.mark.anyio

_WAIT_S = 20.0
"""Long enough for a working Redis to respond in time, even on a busy machine."""


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Run a Redis server."""
    with redis_server() as running:
        yield running


@contextlib.asynccontextmanager
async def _limiters(url: str, *waits_s: float) -> AsyncIterator[list[RateLimiter]]:
    """Run the limiters of several servers that share one Redis: ten images a day."""
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


async def _wait_until_counted(redis: RedisServer, limiter: RateLimiter, client: str) -> None:
    """Wait until Redis has a count for `client`; a limiter tries Redis again on the next request."""
    with anyio.fail_after(LONG_S):
        while not _counted(redis, client):
            await limiter.take("probe", 0)
            await asyncio.sleep(0.01)


def _counted(redis: RedisServer, client: str) -> list[int]:
    """Return the counts of a client in Redis, and check that each of them expires."""
    names = list(redis.client.scan_iter(f"vit-api-limits:{client}/*"))
    assert all(0 < redis.client.ttl(name) <= 86_400 for name in names)
    return [int(redis.client.get(name)) for name in names]


async def test_servers_share_a_budget_in_redis(redis: RedisServer) -> None:
    """Of thirty concurrent requests to two servers ten are allowed, and Redis has counted ten."""
    async with _limiters(redis.url, _WAIT_S, _WAIT_S) as (one, two):
        refused = await asyncio.gather(*(_is_refused(server, "several") for server in (one, two) for _ in range(15)))
    assert refused.count(False) == 10
    assert _counted(redis, "several") == [10]


async def test_refused_images_are_not_counted(redis: RedisServer) -> None:
    """After six of ten images, five more are refused and four are still accepted."""
    async with _limiters(redis.url, _WAIT_S, _WAIT_S) as (one, two):
        steps = [(one, 6), (two, 5), (two, 4), (one, 1)]
        assert [await _is_refused(limiter, "back", amount) for limiter, amount in steps] == [False, True, False, True]
    assert _counted(redis, "back") == [10]


async def test_a_slow_redis_delays_no_request(redis: RedisServer) -> None:
    """The server uses its own counts, and adds them to Redis as soon as it responds again."""
    async with _limiters(redis.url, 0.01) as (limiter,):
        with paused(redis.pid):
            refused = [await _is_refused(limiter, "slow") for _ in range(12)]
        assert refused == [False] * 10 + [True] * 2
        await _wait_until_counted(redis, limiter, "slow")


async def test_a_dead_redis_delays_no_request(caplog: pytest.LogCaptureFixture) -> None:
    """The server uses its own counts and logs that once; Redis is used again once it is back."""
    with redis_server() as mortal, caplog.at_level(logging.INFO, "vit_api.access.redis_counts"):
        async with _limiters(mortal.url, _WAIT_S) as (limiter,):
            assert not await _is_refused(limiter, "before")
            mortal.kill()
            refused = [await _is_refused(limiter, "meanwhile") for _ in range(12)]
            assert refused == [False] * 10 + [True] * 2
            mortal.start()
            await _wait_until_counted(mortal, limiter, "probe")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_redis_behind_a_unix_socket() -> None:
    """The library `limits` uses another scheme for such an address."""
    with tempfile.TemporaryDirectory() as folder, redis_server("--unixsocket", f"{folder}/redis") as redis:
        async with _limiters(f"unix://{folder}/redis", _WAIT_S) as (limiter,):
            assert not await _is_refused(limiter, "local", 3)
        assert _counted(redis, "local") == [3]
