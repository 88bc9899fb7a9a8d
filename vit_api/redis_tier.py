"""The shared tier: predictions in Redis, for all HTTP processes and all servers with the same model.

Redis may be slow, full or gone at any time. No request fails or waits for longer than 20 ms because of that: what Redis
doesn't tell in time counts as unknown, and while it is down it is not asked, but tried again in the background.

Theory of operation
-------------------
Look-ups that come while one is under way are collected and go together, as one MGET; so do the writes, as one
pipeline. That costs a fraction of a command for each image. A look-up gets `_ASK_S`; it may have to wait for the one
before it, so a request waits for twice that at the most. Redis is taken for down after a refused connection or
`_MOST_TIMEOUTS` timeouts in a row.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from vit_api.cache_board import CacheTally
from vit_api.errors import RedisUnavailable
from vit_api.records import Prediction
from vit_api.redis_entry import pack_entry, unpack_entry

logger = logging.getLogger(__name__)

_ASK_S = 0.008
_WRITE_S = 1.0
_CONNECT_S = 1.0
_MOST_TIMEOUTS = 3
_MOST_UNWRITTEN = 10_000
_WRITES_AT_ONCE = 200
"""A pipeline is built on the event loop, at about 10 us a command."""

_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0
_WRITE_PAUSE_S = 1.0
_CLEARED_AT_ONCE = 1000

_FAILURES = (RedisError, OSError)  # the latter with TimeoutError

T = TypeVar("T")


class RedisTier:
    """Remember predictions in Redis. For one HTTP process, on its event loop.

    Args:
        url: redis://, rediss:// or unix://.
        namespace: Starts the keys of what `clear` clears.
        classes: How many the model knows.
        ttl_s: Seconds that Redis remembers a prediction.
        tally: Counts.
    """

    def __init__(self, url: str, *, namespace: str, classes: int, ttl_s: float, tally: CacheTally) -> None:
        self._url = url
        self._prefix = f"vit-api:{namespace}:".encode()
        self._classes = classes
        self._ttl_ms = max(1, math.ceil(ttl_s * 1000))
        self._tally = tally
        self._is_up = False
        self._is_stopped = False
        self._timeouts = 0
        self._wanted: dict[bytes, asyncio.Future[Prediction | None]] = {}
        self._unwritten: dict[bytes, bytes] = {}

    def start(self) -> None:
        """Connect in the background, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._redis = Redis.from_url(
            self._url,
            socket_connect_timeout=_CONNECT_S,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
        )
        self._no_writes_before = 0.0
        self._up_at = -math.inf
        self._retry_s = _FIRST_RETRY_S
        self._is_wanted = asyncio.Event()
        self._is_unwritten = asyncio.Event()
        self._is_down = asyncio.Event()
        self._is_down.set()
        rounds = (self._look_up, self._write, self._recover)
        self._tasks = [self._loop.create_task(self._repeat(one)) for one in rounds]

    async def stop(self) -> None:
        """Disconnect. What is not written yet is forgotten."""
        self._is_up = False
        self._is_stopped = True  # redis-py may swallow a cancellation
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=_CONNECT_S)
        for future in self._wanted.values():
            future.set_result(None)
        self._wanted.clear()
        await self._redis.aclose()

    async def get(self, key: bytes) -> Prediction | None:
        """Return what Redis remembers of `key`; None if nothing, nothing usable, or nothing in time."""
        if not self._is_up:
            self._tally.add("redis_skipped")
            return None
        future = self._wanted.get(key)
        if future is None:
            future = self._wanted[key] = self._loop.create_future()
            self._is_wanted.set()
        return await asyncio.shield(future)

    def put(self, key: bytes, prediction: Prediction) -> None:
        """Have Redis remember a prediction, some time soon, if it can."""
        if not self._is_up or self._loop.time() < self._no_writes_before or len(self._unwritten) >= _MOST_UNWRITTEN:
            self._tally.add("redis_skipped")
            return
        self._unwritten[key] = pack_entry(key, prediction)
        self._is_unwritten.set()

    async def clear(self) -> int:
        """Have Redis forget everything of this namespace, and return how many entries that were.

        Raises:
            RedisUnavailable: Redis can't be reached or refuses.
        """
        self._unwritten.clear()
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", self._prefix) + b"*"
        cleared, cursor = 0, None
        try:
            while cursor != 0:
                with anyio.fail_after(_WRITE_S):
                    cursor, names = await self._redis.scan(cursor or 0, pattern, _CLEARED_AT_ONCE)
                    cleared += await self._redis.unlink(*names) if names else 0
        except _FAILURES as error:
            reason = str(error) or type(error).__name__
            raise RedisUnavailable(f"Redis could not be cleared: {reason}; this server has forgotten") from None
        return cleared

    async def _repeat(self, one_round: Callable[[], Awaitable[None]]) -> None:
        """Do something again and again, whatever becomes of it: a bug of ours must not leave look-ups unanswered."""
        while not self._is_stopped:
            try:
                await one_round()
            except Exception:
                logger.exception("the Redis tier failed in an unforeseen way")
                await asyncio.sleep(_LAST_RETRY_S)

    async def _look_up(self) -> None:
        """Ask Redis for what is wanted, all that came since the last time at once."""
        await self._is_wanted.wait()
        self._is_wanted.clear()
        wanted, self._wanted = self._wanted, {}
        try:
            entries = await self._ask(wanted) if self._is_up else None
            if entries is None:
                self._tally.add("redis_skipped", len(wanted))
            else:
                for (key, future), entry in zip(wanted.items(), entries, strict=True):
                    future.set_result(self._usable(key, entry))
        finally:
            for future in wanted.values():
                if not future.done():
                    future.set_result(None)

    def _name_of(self, key: bytes) -> bytes:
        return self._prefix + key.hex().encode()

    async def _ask(self, keys: Collection[bytes]) -> list[bytes | None] | None:
        mget: Awaitable[list[Any]] = self._redis.mget([self._name_of(key) for key in keys])
        return await self._tried(mget, _ASK_S)

    def _usable(self, key: bytes, entry: bytes | None) -> Prediction | None:
        if entry is None:
            self._tally.add("redis_misses")
            return None
        try:
            prediction = unpack_entry(key, entry, self._classes)
        except ValueError:
            self._tally.add("redis_rejected")
            return None
        self._tally.add("redis_hits")
        return prediction

    async def _write(self) -> None:
        """Write what is to be remembered, much at once."""
        if not self._unwritten:
            self._is_unwritten.clear()
        await self._is_unwritten.wait()
        pipeline = self._redis.pipeline(transaction=False)
        for key in list(itertools.islice(self._unwritten, _WRITES_AT_ONCE)):
            pipeline.set(self._name_of(key), self._unwritten.pop(key), px=self._ttl_ms)
        results = await self._tried(pipeline.execute(raise_on_error=False), _WRITE_S)
        refusals = [result for result in results or () if isinstance(result, ResponseError)]
        if refusals:  # full, or a replica that can't be written to
            self._tally.add("redis_failures", len(refusals))
            self._no_writes_before = self._loop.time() + _WRITE_PAUSE_S
            logger.warning("Redis refuses to remember: %s", refusals[0])

    async def _tried(self, command: Awaitable[T], timeout_s: float) -> T | None:
        """Return what Redis answers, or None if it fails or takes too long, which may mean that it is down."""
        try:
            with anyio.fail_after(timeout_s):
                result = await command
        except _FAILURES as error:
            self._tally.add("redis_failures")
            self._timeouts += 1
            if not isinstance(error, TimeoutError) or self._timeouts >= _MOST_TIMEOUTS:
                self._go_down(error)
            return None
        except Exception:
            logger.exception("a command to Redis failed in an unforeseen way")
            self._tally.add("redis_failures")
            return None
        self._timeouts = 0
        return result

    def _go_down(self, error: Exception) -> None:
        if self._is_up:
            logger.warning("Redis is down, going on without it: %s", str(error) or type(error).__name__)
            self._is_up = False
            self._tally.set("redis_up", 0)
            self._is_down.set()

    async def _recover(self) -> None:
        """While Redis is down, try it again, less and less often until it has stayed up for a while."""
        await self._is_down.wait()
        if self._loop.time() - self._up_at > _LAST_RETRY_S:
            self._retry_s = _FIRST_RETRY_S
        if not await self._answers():
            await asyncio.sleep(0 if self._is_stopped else self._retry_s)
            self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
            return
        self._up_at = self._loop.time()
        self._timeouts = 0
        self._is_down.clear()
        self._is_up = True
        self._tally.set("redis_up", 1)
        logger.info("Redis is up")

    async def _answers(self) -> bool:
        """Tell whether Redis answers, and once connected, as fast as a look-up needs it."""
        try:
            for timeout_s in (_CONNECT_S, _ASK_S):
                with anyio.fail_after(timeout_s):
                    await self._redis.ping()
        except _FAILURES as error:
            logger.debug("Redis is still down: %s", error)
            return False
        return True
