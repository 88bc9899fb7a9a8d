"""The shared tier on a real Redis: storage, validation of values, and behaviour without Redis."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from benchmarks.harness.servers import free_port
from tests.support.redis_server import RedisServer, redis_server
from tests.support.server import paused
from tests.support.waiting import LONG_S, until
from vit_api.errors import RedisUnavailable
from vit_api.ipc.cache_board import CacheBoard, CacheTally
from vit_api.ipc.records import MAX_TOP_K, Prediction
from vit_api.web.core.redis_entry import pack_entry, unpack_entry
from vit_api.web.core.redis_tier import RedisTier

_KEY = bytes(range(32))
_TOP = Prediction((3, 1, 2), (2.0, -0.25, -120.0), 0.5)
pytestmark = pytest.mark.anyio


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """Run a Redis."""
    with redis_server() as server:
        yield server


@contextlib.asynccontextmanager
async def running(url: str, **options: object) -> AsyncIterator[tuple[RedisTier, CacheBoard]]:
    """Start a tier, and stop it at the end."""
    board = CacheBoard(1)
    settings = {"namespace": "m[1]*", "classes": 10, "ttl_s": 100.0} | options
    tier = RedisTier(url, tally=CacheTally(board, 0), **settings)  # type: ignore[arg-type]
    tier.start()
    try:
        yield tier, board
    finally:
        await tier.stop()


async def until_up(board: CacheBoard) -> None:
    """Wait until the tier has connected to Redis."""
    await until(lambda: board.totals()["redis_up"] == 1)


async def get(tier: RedisTier, board: CacheBoard, key: bytes) -> Prediction | None:
    """Look a key up, with retries, since a busy machine may delay Redis."""
    with anyio.fail_after(LONG_S):
        while True:
            skipped = board.totals()["redis_skipped"]
            found = await tier.get(key)
            if board.totals()["redis_skipped"] == skipped:
                return found
            await asyncio.sleep(0.05)


async def test_entries_have_a_ttl(redis: RedisServer) -> None:
    """Entries are stored under the namespace, with the time to live."""
    async with running(redis.url) as (tier, board):
        await until_up(board)
        assert await get(tier, board, _KEY) is None
        tier.put(_KEY, _TOP)
        name = b"vit-api:m[1]*:" + _KEY.hex().encode()
        await until(lambda: redis.client.exists(name) == 1)
        assert await get(tier, board, _KEY) == _TOP
        assert 90_000 < redis.client.pttl(name) <= 100_000
        totals = board.totals()
        assert (totals["redis_hits"], totals["redis_misses"], totals["redis_rejected"]) == (1, 1, 0)


async def test_many_look_ups_and_writes_at_once(redis: RedisServer) -> None:
    """Each concurrent look-up gets its own value."""
    async with running(redis.url) as (tier, board):
        await until_up(board)
        tops = {number.to_bytes(32, "big"): Prediction((number % 10,), (0.0,), number / 256) for number in range(200)}
        for key, top in tops.items():
            tier.put(key, top)
        await until(lambda: redis.client.dbsize() == 200)
        found = await asyncio.gather(*(get(tier, board, key) for key in tops))
        assert found == list(tops.values())


async def test_clear_keeps_other_namespaces(redis: RedisServer) -> None:
    """Only this namespace is cleared, although its name has wildcards."""
    async with running(redis.url) as (tier, board):
        await until_up(board)
        redis.client.set("vit-api:m1x:00", b"another model's")
        redis.client.set("session", b"another application's")
        for number in range(1500):
            tier.put(number.to_bytes(32, "big"), _TOP)
        await until(lambda: redis.client.dbsize() == 1502)
        assert await tier.clear() == 1500
        assert set(redis.entries()) == {b"vit-api:m1x:00", b"session"}
        assert await tier.clear() == 0


def _sealed(key: bytes, packed: bytes) -> bytes:
    """Return an entry with a valid checksum around any payload."""
    return struct.pack("<4sI", b"ViT2", zlib.crc32(packed, zlib.crc32(key))) + packed


def _of_an_older_server() -> bytes:
    """Return an entry in the first format, with probabilities and without logits."""
    packed = struct.pack("<B20I20f", 1, 7, *[0] * 19, 1.0, *[0.0] * 19)
    return struct.pack("<4sI", b"ViT1", zlib.crc32(packed, zlib.crc32(_KEY))) + packed


_GOOD = pack_entry(_KEY, _TOP)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x80\x04K\x01.", id="a pickle"),
        pytest.param(b'{"predictions":[]}', id="JSON"),
        pytest.param(_GOOD[:-1], id="cut off"),
        pytest.param(_GOOD + b"\0", id="too long"),
        pytest.param(_GOOD[:50] + bytes([_GOOD[50] ^ 1]) + _GOOD[51:], id="one bit"),
        pytest.param(b"ViT3" + _GOOD[4:], id="another version"),
        pytest.param(_of_an_older_server(), id="of an older server"),
        pytest.param(pack_entry(bytes(32), _TOP), id="another key's"),
        pytest.param(_sealed(_KEY, b"\xff" * 165), id="counts too many classes"),
        pytest.param(_sealed(_KEY, b"short"), id="sealed, of another size"),
        pytest.param(pack_entry(_KEY, Prediction((), (), 1.0)), id="no classes"),
        pytest.param(pack_entry(_KEY, Prediction((10,), (0.0,), 1.0)), id="an unknown class"),
        pytest.param(pack_entry(_KEY, Prediction((1,), (0.0,), 1.5)), id="more than certain"),
        pytest.param(pack_entry(_KEY, Prediction((1,), (0.0,), math.nan)), id="not a number"),
        pytest.param(pack_entry(_KEY, Prediction((1, 2), (0.0, 999.0), 0.5)), id="a first that is not the most likely"),
        pytest.param(pack_entry(_KEY, Prediction((1, 2), (math.inf, 0.0), 1.0)), id="an endless logit"),
    ],
)
def test_foreign_and_corrupt_entries_are_rejected(entry: bytes) -> None:
    """Unpacking raises, which callers see as a miss."""
    with pytest.raises(ValueError, match=r"."):
        unpack_entry(_KEY, entry, classes=10)


def test_packed_entries_are_accepted() -> None:
    """Up to the top 20, with a probability that rounding lifted above one."""
    for top in (_TOP, Prediction(tuple(range(MAX_TOP_K)), (7.0,) * MAX_TOP_K, 1.0000001)):
        unpacked = unpack_entry(_KEY, pack_entry(_KEY, top), classes=MAX_TOP_K)
        assert unpacked[:2] == top[:2]
        assert unpacked.top_probability == pytest.approx(top.top_probability)


async def test_a_poisoned_value_is_a_miss(redis: RedisServer) -> None:
    """The value is counted, and overwritten by the next valid one."""
    async with running(redis.url) as (tier, board):
        await until_up(board)
        name = b"vit-api:m[1]*:" + _KEY.hex().encode()
        redis.client.set(name, b"\x80\x04poison")
        assert await get(tier, board, _KEY) is None
        assert board.totals()["redis_rejected"] == 1
        tier.put(_KEY, _TOP)
        await until(lambda: redis.client.get(name) == _GOOD)
        assert await get(tier, board, _KEY) == _TOP


async def test_a_value_of_another_type_is_a_miss(redis: RedisServer) -> None:
    """A key that holds a list, for example, is a miss."""
    async with running(redis.url) as (tier, board):
        await until_up(board)
        redis.client.rpush(b"vit-api:m[1]*:" + _KEY.hex().encode(), b"x")
        assert await get(tier, board, _KEY) is None
        assert board.totals()["redis_up"] == 1


async def test_no_redis_at_all() -> None:
    """Look-ups and writes are skipped and counted; only `clear` raises."""
    async with running(f"redis://127.0.0.1:{free_port()}/0") as (tier, board):
        assert await tier.get(_KEY) is None
        tier.put(_KEY, _TOP)
        totals = board.totals()
        assert (totals["redis_skipped"], totals["redis_up"]) == (2, 0)
        with pytest.raises(RedisUnavailable):
            await tier.clear()


async def test_a_redis_that_accepts_and_never_answers() -> None:
    """It never counts as up, so it delays no request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with running(f"redis://127.0.0.1:{listener.getsockname()[1]}/0") as (tier, board):
            assert await tier.get(_KEY) is None
            assert board.totals()["redis_up"] == 0


async def test_a_redis_that_hangs_and_comes_back(redis: RedisServer) -> None:
    """Look-ups time out, Redis counts as down, and it is used again once it responds."""
    async with running(redis.url) as (tier, board):
        await until_up(board)
        tier.put(_KEY, _TOP)
        await until(lambda: redis.client.dbsize() == 1)
        with paused(redis.pid):
            while board.totals()["redis_up"]:
                assert await tier.get(_KEY) is None
                await asyncio.sleep(0.001)
            assert board.totals()["redis_failures"] == 1
            skipped = board.totals()["redis_skipped"]
            assert await tier.get(_KEY) is None
            assert board.totals()["redis_skipped"] == skipped + 1
        await until_up(board)
        assert await get(tier, board, _KEY) == _TOP


async def test_a_redis_that_is_killed_and_started_again(redis: RedisServer) -> None:
    """A refused connection counts as down at once; the empty Redis is used once it is up."""
    async with running(redis.url) as (tier, board):
        await until_up(board)
        redis.kill()
        while board.totals()["redis_up"]:
            assert await tier.get(_KEY) is None
            await asyncio.sleep(0.001)
        redis.start()
        await until_up(board)
        tier.put(_KEY, _TOP)
        await until(lambda: redis.client.dbsize() == 1)
        assert await get(tier, board, _KEY) == _TOP


async def test_a_full_redis_still_answers_look_ups() -> None:
    """Writes are refused, counted and paused; look-ups continue."""
    with redis_server("--maxmemory-policy", "noeviction") as redis:
        async with running(redis.url) as (tier, board):
            await until_up(board)
            tier.put(_KEY, _TOP)
            await until(lambda: redis.client.dbsize() == 1)
            redis.client.config_set("maxmemory", 1)
            tier.put(bytes(32), _TOP)
            await until(lambda: board.totals()["redis_failures"] == 1)
            tier.put(bytes(32), _TOP)
            assert board.totals()["redis_skipped"] >= 1
            assert await get(tier, board, _KEY) == _TOP
            redis.client.config_set("maxmemory", 0)
            while redis.client.dbsize() == 1:
                tier.put(bytes(32), _TOP)
                await asyncio.sleep(0.02)


async def test_a_wrong_password_counts_as_down() -> None:
    """No request fails, and the log has the reason."""
    with redis_server("--requirepass", "secret") as redis:
        async with running(redis.url.replace("redis://", "redis://:wrong@")) as (tier, _):
            assert await tier.get(_KEY) is None
            with pytest.raises(RedisUnavailable, match=r"(?i)auth|pass"):
                await tier.clear()


@pytest.mark.parametrize(
    "reply",
    [pytest.param([], id="too short"), pytest.param([RuntimeError("moved")], id="an error inside"), None],
)
async def test_an_invalid_reply_is_a_miss(redis: RedisServer, monkeypatch: pytest.MonkeyPatch, reply: object) -> None:
    """Waiting look-ups are misses, and later look-ups work without a delay."""
    async with running(redis.url) as (tier, board):
        await until_up(board)

        async def query(_: object) -> object:
            return reply

        with monkeypatch.context() as patch:
            patch.setattr(tier, "_query", query)
            assert await tier.get(_KEY) is None
            assert await tier.get(_KEY) is None
        await until_up(board)
        tier.put(_KEY, _TOP)
        await until(lambda: redis.client.dbsize() == 1)
        assert await get(tier, board, _KEY) == _TOP


async def test_a_clear_drops_pending_writes(redis: RedisServer) -> None:
    """This also holds for processes that did not receive the clear request."""
    async with running(redis.url) as (tier, board):
        await until_up(board)
        tier.put(_KEY, _TOP)
        board.clear()
        tier.put(bytes(32), _TOP)
        await until(lambda: redis.client.dbsize() > 0)
        assert list(redis.entries()) == [b"vit-api:m[1]*:" + bytes(32).hex().encode()]


async def test_a_stop_while_redis_hangs(redis: RedisServer) -> None:
    """The tier stops with one look-up in flight, and one that timed out before it was sent."""
    async with running(redis.url) as (tier, board):
        await until_up(board)
        with paused(redis.pid):
            under_way = asyncio.ensure_future(tier.get(_KEY))
            while tier._query_sent_at is None:
                await asyncio.sleep(0)
            assert await tier.get(bytes(32)) is None
            await tier.stop()
            assert await under_way is None
        tier.start()  # for `run`, which stops it again
