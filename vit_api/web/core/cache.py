"""Values cached for a limited time (TTL) and up to a limited number (LRU), in one HTTP process.

Knows nothing of images, models or HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from cachetools import TTLCache

from vit_api.ipc.cache_board import CacheTally

V = TypeVar("V")


class AnswerCache(Generic[V]):
    """Cache values for a limited time; when full, evict the least recently used one. For one HTTP process.

    Once the caches are cleared, from any process, no older value is found.

    Args:
        size: Maximum number of values.
        ttl_s: Seconds until a value expires.
        tally: Publishes the number of values; its board has the epoch, which changes when the caches are cleared.
        clock: Seconds.
    """

    def __init__(
        self, size: int, ttl_s: float, tally: CacheTally, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ttl_s = ttl_s
        self._values: TTLCache[bytes, V] = TTLCache(size, ttl_s, timer=clock)
        self._tally = tally
        self._cache_board = tally.cache_board
        self._epoch = -1
        self.refresh()

    def get(self, key: bytes) -> V | None:
        """Return the value, or None if it is unknown or expired."""
        if self._epoch != self._cache_board.epoch:
            self.refresh()
        try:
            return self._values[key]
        except KeyError:
            return None

    def put(self, key: bytes, value: V) -> None:
        """Cache a value, for a full TTL from now."""
        self._apply_clear()
        self._values[key] = value
        self._publish_count()

    def refresh(self) -> None:
        """Evict expired values, or all of them if the caches were cleared."""
        self._apply_clear()
        self._publish_count()

    def _apply_clear(self) -> None:
        if self._epoch != self._cache_board.epoch:
            self._epoch = self._cache_board.epoch
            self._values.clear()
            self._tally.acknowledge(self._epoch)

    def _publish_count(self) -> None:
        self._tally.set("entries", len(self._values))  # len() evicts what has expired
