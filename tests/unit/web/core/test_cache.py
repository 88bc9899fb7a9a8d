"""The TTL cache with a clock that the test turns, and single flight with computations that the test ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from vit_api.deadline import Deadline
from vit_api.errors import DeadlineExceeded, InferenceFailed
from vit_api.ipc.cache_board import CacheBoard, CacheTally
from vit_api.web.core.cache import AnswerCache, SingleFlight

_LONG_S = 60.0


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


def test_putting_a_value_again_begins_its_time_anew() -> None:
    """A refreshed answer lives as long as a new one."""
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


def test_what_is_too_old_is_forgotten_without_being_asked_for() -> None:
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


class Work:
    """Computations that end when the test says so."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.deadlines: list[Deadline] = []
        self.outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self, deadline: Deadline) -> str:
        self.started += 1
        self.deadlines.append(deadline)
        try:
            return await asyncio.shield(self.outcome)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def run(scenario: Callable[[SingleFlight[str], Work], Awaitable[None]]) -> None:
    """Run a scenario on an event loop, and check that no flight stays behind."""

    async def whole() -> None:
        flights: SingleFlight[str] = SingleFlight()
        await scenario(flights, Work())
        await asyncio.sleep(0)
        assert not flights._flights

    asyncio.run(asyncio.wait_for(whole(), _LONG_S))


def join(flights: SingleFlight[str], work: Work, key: str = "k", timeout_s: float = _LONG_S) -> asyncio.Task:
    """Join a flight in a task of its own."""
    return asyncio.ensure_future(flights.join(key, time.monotonic() + timeout_s, work))


def test_one_computation_for_all() -> None:
    """The first starts it, the others join it, and each gets its value."""

    async def scenario(flights: SingleFlight[str], work: Work) -> None:
        assert not flights.is_in_flight("k")
        waiters = [join(flights, work) for _ in range(50)]
        await asyncio.sleep(0)
        assert flights.is_in_flight("k")
        work.outcome.set_result("done")
        assert await asyncio.gather(*waiters) == ["done"] * 50
        assert work.started == 1

    run(scenario)


def test_other_keys_and_later_calls_compute_themselves() -> None:
    """Only what is under way is shared."""

    async def scenario(flights: SingleFlight[str], work: Work) -> None:
        waiters = [join(flights, work, key) for key in "ab"]
        await asyncio.sleep(0)
        work.outcome.set_result("done")
        await asyncio.gather(*waiters)
        assert await join(flights, work, "a") == "done"
        assert work.started == 3

    run(scenario)


@pytest.mark.parametrize("who", [0, 1, 2])
def test_one_who_leaves_takes_nothing_along(who: int) -> None:
    """Not even if it was the one that started the computation."""

    async def scenario(flights: SingleFlight[str], work: Work) -> None:
        waiters = [join(flights, work) for _ in range(3)]
        await asyncio.sleep(0)
        waiters.pop(who).cancel()
        await asyncio.sleep(0)
        work.outcome.set_result("done")
        assert await asyncio.gather(*waiters) == ["done"] * 2
        assert (work.started, work.cancelled) == (1, 0)

    run(scenario)


def test_when_the_last_one_leaves_the_computation_is_cancelled() -> None:
    """Who comes at the same moment starts anew, and is not cancelled along."""

    async def scenario(flights: SingleFlight[str], work: Work) -> None:
        waiters = [join(flights, work) for _ in range(3)]
        await asyncio.sleep(0)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters)
        late = join(flights, work)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (work.started, work.cancelled) == (2, 1)
        work.outcome.set_result("done")
        assert await late == "done"

    run(scenario)


def test_each_has_its_own_deadline() -> None:
    """One gives up at its time; the other gets the value, and the computation knows the later time."""

    async def scenario(flights: SingleFlight[str], work: Work) -> None:
        hasty, patient = join(flights, work, timeout_s=0.01), join(flights, work)
        with pytest.raises(DeadlineExceeded):
            await hasty
        assert work.deadlines[0].at > time.monotonic() + _LONG_S / 2
        work.outcome.set_result("done")
        assert await patient == "done"
        assert work.cancelled == 0

    run(scenario)


def test_at_the_last_deadline_the_computation_is_cancelled() -> None:
    """Nobody waits for it any more."""

    async def scenario(flights: SingleFlight[str], work: Work) -> None:
        waiters = [join(flights, work, timeout_s=timeout_s) for timeout_s in (0.01, 0.02)]
        outcomes = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded] * 2
        await asyncio.sleep(0)
        assert work.cancelled == 1

    run(scenario)


def test_a_failure_is_everybodys_and_is_not_kept() -> None:
    """Each waiter gets it; who comes later computes anew."""

    async def scenario(flights: SingleFlight[str], work: Work) -> None:
        waiters = [join(flights, work) for _ in range(3)]
        await asyncio.sleep(0)
        work.outcome.set_exception(InferenceFailed("planted"))
        outcomes = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [InferenceFailed] * 3
        work.outcome = asyncio.get_running_loop().create_future()
        work.outcome.set_result("better")
        assert await join(flights, work) == "better"

    run(scenario)
