"""The TTL cache, with a clock that the test turns."""

from __future__ import annotations

import pytest

from vit_api.ipc.cache_board import CacheBoard, CacheTally
from vit_api.web.core.cache import AnswerCache


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_cache(size: int = 3, ttl_s: float = 10.0) -> tuple[AnswerCache[str], Clock, CacheBoard]:
    """Return a cache, its clock and its board."""
    clock, board = Clock(), CacheBoard(2)
    return AnswerCache(size, ttl_s, CacheTally(board, 1), clock=clock), clock, board


def test_a_value_lives_for_its_time() -> None:
    """It is there until just before the end of its time, and asking for it doesn't make that longer."""
    cache, clock, _ = make_cache()
    cache.put(b"a", "A")
    clock.now += 9.9
    assert cache.get(b"a") == "A"
    clock.now += 0.1
    assert cache.get(b"a") is None


def test_putting_a_value_again_restarts_its_lifetime() -> None:
    """A replaced value has the full TTL again."""
    cache, clock, _ = make_cache()
    cache.put(b"a", "A")
    clock.now += 9
    cache.put(b"a", "A2")
    clock.now += 9
    assert cache.get(b"a") == "A2"


def test_the_least_recently_used_goes_first() -> None:
    """Looking a value up counts as use."""
    cache, clock, board = make_cache(size=3)
    for name in "abc":
        clock.now += 1
        cache.put(name.encode(), name)
    assert cache.get(b"a") == "a"
    cache.put(b"d", "d")
    assert [cache.get(name.encode()) for name in "abcd"] == ["a", None, "c", "d"]
    assert board.totals()["entries"] == 3


def test_expired_entries_are_evicted_without_a_look_up() -> None:
    """`refresh` gives the memory back, and the count is right."""
    cache, clock, board = make_cache()
    cache.put(b"a", "A")
    clock.now += 5
    cache.put(b"b", "B")
    assert board.totals()["entries"] == 2
    clock.now += 5
    cache.refresh()
    assert board.totals()["entries"] == 1
    assert (cache.get(b"a"), cache.get(b"b")) == (None, "B")


@pytest.mark.parametrize("looks_up", [True, False])
def test_clearing_reaches_the_caches_of_all_processes(looks_up: bool) -> None:
    """The next look-up, put or refresh finds nothing older."""
    board = CacheBoard(2)
    caches: list[AnswerCache[str]] = [AnswerCache(3, 10, CacheTally(board, number)) for number in range(2)]
    for cache in caches:
        cache.put(b"a", "A")
    board.clear()
    for cache in caches:
        if looks_up:
            assert cache.get(b"a") is None
        else:
            cache.put(b"b", "B")
            assert (cache.get(b"a"), cache.get(b"b")) == (None, "B")
    assert board.totals()["entries"] == (0 if looks_up else 2)
