"""The TTL cache, with a fake clock."""

from __future__ import annotations

import pytest

from vit_api.ipc.cache_board import CacheBoard, CacheTally
from vit_api.web.core.cache import AnswerCache


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_cache(size: int = 3, ttl_s: float = 10.0) -> tuple[AnswerCache[str], Clock, CacheBoard]:
    """Return a cache, its clock and its board."""
    clock, board = Clock(), CacheBoard(2)
    return AnswerCache(size, ttl_s, CacheTally(board, 1), clock=clock), clock, board


def test_a_value_expires_after_its_ttl() -> None:
    """It is there until just before its TTL ends, and a look-up does not extend the TTL."""
    cache, clock, board = make_cache()
    cache.put(b"a", "A", board.epoch)
    clock.now += 9.9
    assert cache.get(b"a") == "A"
    clock.now += 0.1
    assert cache.get(b"a") is None


def test_putting_a_value_again_restarts_its_lifetime() -> None:
    """A replaced value has the full TTL again."""
    cache, clock, board = make_cache()
    cache.put(b"a", "A", board.epoch)
    clock.now += 9
    cache.put(b"a", "A2", board.epoch)
    clock.now += 9
    assert cache.get(b"a") == "A2"


def test_the_least_recently_used_is_evicted_first() -> None:
    """A look-up counts as use."""
    cache, clock, board = make_cache(size=3)
    for name in "abc":
        clock.now += 1
        cache.put(name.encode(), name, board.epoch)
    assert cache.get(b"a") == "a"
    cache.put(b"d", "d", board.epoch)
    assert [cache.get(name.encode()) for name in "abcd"] == ["a", None, "c", "d"]
    assert board.totals()["entries"] == 3


def test_expired_entries_are_evicted_without_a_look_up() -> None:
    """`refresh` frees their memory and updates the count."""
    cache, clock, board = make_cache()
    cache.put(b"a", "A", board.epoch)
    clock.now += 5
    cache.put(b"b", "B", board.epoch)
    assert board.totals()["entries"] == 2
    clock.now += 5
    cache.refresh()
    assert board.totals()["entries"] == 1
    assert (cache.get(b"a"), cache.get(b"b")) == (None, "B")


@pytest.mark.parametrize("looks_up", [True, False])
def test_clearing_reaches_the_caches_of_all_processes(looks_up: bool) -> None:
    """After a clear, no look-up, put or refresh finds older entries."""
    board = CacheBoard(2)
    caches: list[AnswerCache[str]] = [AnswerCache(3, 10, CacheTally(board, number)) for number in range(2)]
    for cache in caches:
        cache.put(b"a", "A", board.epoch)
    board.clear()
    for cache in caches:
        if looks_up:
            assert cache.get(b"a") is None
        else:
            cache.put(b"b", "B", board.epoch)
            assert (cache.get(b"a"), cache.get(b"b")) == (None, "B")
    assert board.totals()["entries"] == (0 if looks_up else 2)


class Shelf:
    """A shared tier in a dict: value, expiry and epoch by key."""

    def __init__(self) -> None:
        self.entries: dict[bytes, tuple[str, float, int]] = {}

    def get(self, key: bytes, now: float, epoch: int) -> tuple[str, float] | None:
        value, expires_at, stored_epoch = self.entries.get(key, ("", 0.0, -1))
        return (value, expires_at) if stored_epoch == epoch and expires_at > now else None

    def put(self, key: bytes, value: str, expires_at: float, epoch: int) -> None:
        self.entries[key] = (value, expires_at, epoch)


def make_caches(ttl_s: float = 10.0) -> tuple[list[AnswerCache[str]], Shelf, Clock, CacheBoard]:
    """Return the caches of two processes that share a shelf."""
    clock, board, shelf = Clock(), CacheBoard(2), Shelf()
    caches = [AnswerCache[str](3, ttl_s, CacheTally(board, number), shelf, clock=clock) for number in range(2)]
    return caches, shelf, clock, board


def test_results_are_found_by_other_processes() -> None:
    """They cache the result too, with the remaining TTL."""
    (first, second), shelf, clock, board = make_caches()
    first.put(b"a", "A", board.epoch)
    clock.now += 9
    assert second.get(b"a") == "A"
    shelf.entries.clear()
    assert second.get(b"a") == "A"
    assert board.totals()["entries"] == 2
    clock.now += 1
    assert (first.get(b"a"), second.get(b"a")) == (None, None)


def test_what_was_evicted_here_is_found_in_the_shared_tier() -> None:
    """The shared tier may hold more than one process does."""
    (first, _), _, _, board = make_caches()
    for name in "abcd":
        first.put(name.encode(), name, board.epoch)
    assert first.get(b"a") == "a"


def test_a_value_from_before_a_clear_is_cached_nowhere() -> None:
    """A value whose computation began before the clear is rejected."""
    (first, second), shelf, _, board = make_caches()
    epoch = board.epoch
    board.clear()
    assert not first.put(b"a", "A", epoch)
    assert (first.get(b"a"), second.get(b"a"), shelf.entries) == (None, None, {})
    assert first.put(b"a", "A", board.epoch)
    board.clear()
    assert (first.get(b"a"), second.get(b"a")) == (None, None)
