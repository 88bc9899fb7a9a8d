"""The shared tier: predictions in Redis, for all HTTP processes and all servers with the same model.

Redis may be slow, full or down at any time. No request fails because of that or waits for longer than 20 ms: a late
reply counts as a miss, and while Redis is down no query is sent, and the tier reconnects in the background.

Theory of operation
-------------------
A look-up has a timer of its own: it waits for at most `_WAIT_S`, and then counts as skipped. Look-ups that arrive while
one is in flight are collected and sent together, as one MGET; writes likewise, as one pipeline. Each image thus costs a
fraction of a command. A reply that is too late for its waiters is still awaited, so that the connection stays usable;
meanwhile no other look-up starts to wait. Redis is considered down when a command fails or gets no reply within
`_DEAD_S`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
from collections.abc import Awaitable, Callable, Collection, Sequence

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from vit_api.errors import RedisUnavailable
from vit_api.ipc.cache_board import CacheTally
from vit_api.ipc.records import Prediction
from vit_api.web.core.redis_entry import pack_entry, unpack_entry

logger = logging.getLogger(__name__)

_WAIT_S = 0.015
_DEAD_S = 1.0
_MAX_LOOK_UPS_PER_COMMAND = 200
_MAX_UNWRITTEN = 10_000
_MAX_LONG_UNWRITTEN = 500
_MAX_ENTRY_BYTES = 2**15
"""Longer answers, of several thousand classes, stay in this server: reading many of them would take too long."""

_MAX_WRITES_PER_PIPELINE = 200
"""Maximum number of commands in a pipeline, which is built on the event loop."""

_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0
_WRITE_PAUSE_S = 1.0
_CLEARED_PER_SCAN = 1000

_FAILURES = (RedisError, OSError)  # the latter with TimeoutError


class RedisTier:
    """Cache predictions in Redis. For one HTTP process, on its event loop.

    Args:
        url: redis://, rediss:// or unix://.
        namespace: Prefix of the keys; `clear` deletes what has it.
        classes: The model's number of classes.
        ttl_s: Seconds until an entry expires.
        tally: Counts look-ups, failures and skipped commands.
    """

    def __init__(self, url: str, *, namespace: str, classes: int, ttl_s: float, tally: CacheTally) -> None:
        self._url = url
        self._prefix = f"vit-api:{namespace}:".encode()
        self._classes = classes
        self._ttl_ms = max(1, math.ceil(ttl_s * 1000))
        self._tally = tally
        tally.set("redis_up", 0)  # this process's predecessor may have died with it set
        self._epoch = tally.cache_board.epoch
        self._is_up = False
        self._is_stopped = False
        self._query_sent_at: float | None = None  # when the look-up in flight was sent
        self._wanted: dict[bytes, asyncio.Future[Prediction | None]] = {}
        self._unwritten: dict[bytes, bytes] = {}

    def start(self) -> None:
        """Connect in the background, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._redis = Redis.from_url(
            self._url,
            socket_connect_timeout=_DEAD_S,
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
        """Disconnect; unwritten entries are dropped."""
        self._is_up = False
        self._is_stopped = True  # redis-py may swallow a cancellation
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=_DEAD_S)
        for future in self._wanted.values():
            self._skip(future)
        await self._redis.aclose()

    async def get(self, key: bytes) -> Prediction | None:
        """Return the cached prediction; None if there is no valid one, or no reply in time."""
        if not self._is_up or self._is_slow():
            self._tally.add("redis_skipped")
            return None
        future = self._wanted.get(key)
        if future is None or future.done():
            future = self._wanted[key] = self._loop.create_future()
            self._is_wanted.set()
            timer = self._loop.call_later(_WAIT_S, self._skip, future)
            future.add_done_callback(lambda _: timer.cancel())
        return await asyncio.shield(future)

    def _is_slow(self) -> bool:
        """Return whether the look-up in flight has already taken too long for its waiters."""
        return self._query_sent_at is not None and self._loop.time() - self._query_sent_at > _WAIT_S

    def _skip(self, future: asyncio.Future[Prediction | None]) -> None:
        if not future.done():
            self._tally.add("redis_skipped")
            future.set_result(None)

    def put(self, key: bytes, prediction: Prediction) -> None:
        """Cache a prediction in the background, if Redis can take it."""
        if not self._is_up or self._loop.time() < self._no_writes_before or len(self._unwritten) >= _MAX_UNWRITTEN:
            self._tally.add("redis_skipped")
            return
        self._apply_clear()
        entry = pack_entry(key, prediction)
        if prediction.is_long and (len(self._unwritten) >= _MAX_LONG_UNWRITTEN or len(entry) > _MAX_ENTRY_BYTES):
            self._tally.add("redis_skipped")
            return
        self._unwritten[key] = entry
        self._is_unwritten.set()

    def _apply_clear(self) -> None:
        """Drop unwritten entries if the caches were cleared since."""
        epoch = self._tally.cache_board.epoch
        if self._epoch != epoch:
            self._epoch = epoch
            self._unwritten.clear()

    async def clear(self) -> int:
        """Delete all entries of this namespace and return their number.

        Raises:
            RedisUnavailable: Redis can't be reached or refuses.
        """
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", self._prefix) + b"*"
        cleared, cursor = 0, None
        try:
            while cursor != 0:
                with anyio.fail_after(_DEAD_S):
                    cursor, names = await self._redis.scan(cursor or 0, pattern, _CLEARED_PER_SCAN)
                    cleared += await self._redis.unlink(*names) if names else 0
        except _FAILURES as error:
            reason = str(error) or type(error).__name__
            raise RedisUnavailable(
                f"Redis could not be cleared ({reason}); the caches of this server were. Try again."
            ) from None
        return cleared

    async def _repeat(self, one_round: Callable[[], Awaitable[None]]) -> None:
        """Repeat a round for as long as this runs; a failure means that Redis is down."""
        while not self._is_stopped:
            try:
                await one_round()
            except _FAILURES as error:
                self._go_down(error)
            except Exception as error:  # an impossible reply, or a bug
                logger.exception("the Redis tier failed unexpectedly")
                self._go_down(error)
                await asyncio.sleep(_FIRST_RETRY_S)

    async def _look_up(self) -> None:
        """Look up what is wanted, many keys in one command."""
        if not self._wanted:
            self._is_wanted.clear()
        await self._is_wanted.wait()
        taken = {key: self._wanted.pop(key) for key in list(itertools.islice(self._wanted, _MAX_LOOK_UPS_PER_COMMAND))}
        wanted = {key: future for key, future in taken.items() if not future.done()}
        try:
            if wanted and self._is_up:
                for (key, future), entry in zip(wanted.items(), await self._query(wanted), strict=True):
                    if not future.done():
                        future.set_result(self._usable(key, entry))
        finally:
            for future in wanted.values():
                self._skip(future)

    async def _query(self, keys: Collection[bytes]) -> Sequence[object]:
        """Return the reply for each key: bytes, None, or an error."""
        self._query_sent_at = self._loop.time()
        try:
            with anyio.fail_after(_DEAD_S):
                reply: Sequence[object] = await self._redis.mget([self._name_of(key) for key in keys])
                return reply
        finally:
            self._query_sent_at = None

    def _name_of(self, key: bytes) -> bytes:
        return self._prefix + key.hex().encode()

    def _usable(self, key: bytes, entry: object) -> Prediction | None:
        if entry is None:
            self._tally.add("redis_misses")
            return None
        try:
            if not isinstance(entry, bytes):
                raise ValueError("an error in place of a value")
            prediction = unpack_entry(key, entry, self._classes)
        except ValueError:
            self._tally.add("redis_rejected")
            return None
        self._tally.add("redis_hits")
        return prediction

    async def _write(self) -> None:
        """Write pending entries, many in one pipeline."""
        if not self._unwritten:
            self._is_unwritten.clear()
        await self._is_unwritten.wait()
        self._apply_clear()
        if not self._unwritten:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for key in list(itertools.islice(self._unwritten, _MAX_WRITES_PER_PIPELINE)):
            pipeline.set(self._name_of(key), self._unwritten.pop(key), px=self._ttl_ms)
        with anyio.fail_after(_DEAD_S):
            results = await pipeline.execute(raise_on_error=False)
        refusals = [result for result in results if isinstance(result, ResponseError)]
        if refusals:  # out of memory, or a read-only replica
            self._tally.add("redis_failures", len(refusals))
            self._no_writes_before = self._loop.time() + _WRITE_PAUSE_S
            logger.warning("Redis refuses writes: %s", refusals[0])

    def _go_down(self, error: Exception) -> None:
        self._tally.add("redis_failures")
        if self._is_up:
            logger.warning("Redis is down, continuing without it: %s", str(error) or type(error).__name__)
            self._is_up = False
            self._tally.set("redis_up", 0)
            self._is_down.set()

    async def _recover(self) -> None:
        """While Redis is down, try to reconnect with exponential back-off, which is reset once it has stayed up."""
        await self._is_down.wait()
        if self._loop.time() - self._up_at > _LAST_RETRY_S:
            self._retry_s = _FIRST_RETRY_S
        if not await self._answers():
            await asyncio.sleep(0 if self._is_stopped else self._retry_s)
            self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
            return
        self._up_at = self._loop.time()
        self._is_down.clear()
        self._is_up = True
        self._tally.set("redis_up", 1)
        logger.info("Redis is up")

    async def _answers(self) -> bool:
        """Return whether Redis answers and, once connected, within the time of a look-up."""
        try:
            for timeout_s in (_DEAD_S, _WAIT_S):
                with anyio.fail_after(timeout_s):
                    await self._redis.ping()
        except _FAILURES as error:
            logger.debug("Redis is still down: %s", error)
            return False
        return True
