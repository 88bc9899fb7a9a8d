"""Values cached for a limited time (TTL) and up to a limited number (LRU), in one HTTP process and in a tier behind it.

Knows nothing of images, models or HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from cachetools import TLRUCache

from vit_api.ipc.cache_board import CacheTally

V = TypeVar("V")


class SharedValues(Protocol[V]):
    """A tier in memory that several HTTP processes share; it never waits."""

    def get(self, key: bytes, now: float, epoch: int) -> tuple[V, float] | None:
        """Return a value of this epoch and when it expires, which is after `now`; or None."""

    def put(self, key: bytes, value: V, expires_at: float, epoch: int) -> None:
        """Cache a value."""


class AnswerCache(Generic[V]):
    """Cache values for a limited time; when full, evict the least recently used one. For one HTTP process.

    Once the caches are cleared, from any process, no older value is found.

    Args:
        size: Maximum number of values.
        ttl_s: Seconds until a value expires.
        tally: Publishes the number of values; its board has the epoch, which changes when the caches are cleared.
        shared: A tier that all HTTP processes share, and in which what is not found here is looked up.
        max_bytes: Maximum size of all values together; None for no limit.
        size_of: Returns the size of a value, in bytes.
        gauge: Where the number of values is published.
        clock: Seconds, the same in all processes.
    """

    def __init__(
        self,
        size: int,
        ttl_s: float,
        tally: CacheTally,
        shared: SharedValues[V] | None = None,
        *,
        max_bytes: int | None = None,
        size_of: Callable[[V], int] | None = None,
        gauge: str = "entries",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ttl_s = ttl_s
        self._clock = clock
        self._expires_at = 0.0  # of the value that is being put
        self._size, self._max_bytes, self._size_of, self._gauge = size, max_bytes, size_of, gauge
        self._values: TLRUCache[bytes, V] = TLRUCache(
            size if max_bytes is None else max_bytes, lambda *_: self._expires_at, timer=clock, getsizeof=size_of
        )
        self._tally = tally
        self._cache_board = tally.cache_board
        self._shared = shared
        self._epoch = -1
        self.refresh()

    def get(self, key: bytes) -> V | None:
        """Return the value, or None if it is unknown or expired, here and in the shared tier."""
        if self._epoch != self._cache_board.epoch:
            self.refresh()
        try:
            return self._values[key]
        except KeyError:
            return None if self._shared is None else self._get_shared(key, self._shared)

    def _get_shared(self, key: bytes, shared: SharedValues[V]) -> V | None:
        """Return a value of the shared tier, and cache it here until it expires there."""
        found = shared.get(key, self._clock(), self._epoch)
        if found is None:
            return None
        value, expires_at = found
        self._put(key, value, expires_at)
        return value

    def put(self, key: bytes, value: V, epoch: int) -> bool:
        """Cache a value here and in the shared tier, for a full TTL from now.

        Args:
            key: The key.
            value: The value.
            epoch: The epoch in which it was requested or looked up.

        Returns:
            Whether it was cached: not if the caches have been cleared since.
        """
        self._apply_clear()
        if epoch != self._epoch:
            return False
        expires_at = self._clock() + self.ttl_s
        self._put(key, value, expires_at)
        if self._shared is not None:
            self._shared.put(key, value, expires_at, epoch)
        return True

    def _put(self, key: bytes, value: V, expires_at: float) -> None:
        self._expires_at = expires_at
        if self._max_bytes is not None and not self._make_room(key, value, self._max_bytes):
            return
        self._values[key] = value
        self._publish_count()

    def _make_room(self, key: bytes, value: V, max_bytes: int) -> bool:
        """Keep to the maximum number of values, of which the library only keeps to their size; return whether it fits.

        A value that is larger than all of them may be is not cached.
        """
        if self._size_of is not None and self._size_of(value) > max_bytes:
            return False
        if key not in self._values and len(self._values) >= self._size:
            self._values.popitem()
        return True

    def refresh(self) -> None:
        """Evict expired values, or all of them if the caches were cleared."""
        self._apply_clear()
        self._publish_count()

    def _apply_clear(self) -> None:
        if self._epoch != self._cache_board.epoch:
            self._epoch = self._cache_board.epoch
            self._values.clear()
            if self._max_bytes is None:
                self._tally.acknowledge(self._epoch)

    def _publish_count(self) -> None:
        self._tally.set(self._gauge, len(self._values))  # len() evicts what has expired
