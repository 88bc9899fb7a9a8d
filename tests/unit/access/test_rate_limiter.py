"""Rate limits without HTTP: windows, several rates, several processes, full tables, and counts of other servers."""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import os
import signal
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_api.access.rate_limiter import Budgets, Charge, RateLimiter, Verdict
from vit_api.access.rates import Rate, parse_rates
from vit_api.access.shared_counts import _CELLS, _SETS, CountColumn, SharedCounts

pytestmark = pytest.mark.anyio

_MINUTE = Rate(10, 60)
_NOW_S = 1_800_000_000.25


class Clock:
    """A clock that advances only when a test sets it."""

    def __init__(self) -> None:
        self.now_s = _NOW_S

    def __call__(self) -> float:
        return self.now_s


async def _take(limiter: RateLimiter, amount: int = 1, client: str = "somebody") -> Verdict:
    return await limiter.take(client, amount)


def test_rates() -> None:
    """One or several rates are read, in the notation of `limits`."""
    assert parse_rates("600/minute") == (Rate(600, 60),)
    assert parse_rates("10/second; 5 per 2 hours,7/day") == (Rate(10, 1), Rate(5, 7200), Rate(7, 86400))


async def test_a_budget_is_used_up_and_reset() -> None:
    """Requests are refused after the rate's amount, until the verdict's `reset_s` has passed."""
    clock = Clock()
    limiter = RateLimiter(Budgets([_MINUTE], 1), 0, clock=clock)
    verdicts = [await _take(limiter) for _ in range(12)]
    assert [verdict.remaining for verdict in verdicts] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
    assert [verdict.is_refused for verdict in verdicts] == [False] * 10 + [True] * 2
    reset_s = verdicts[-1].reset_s
    assert 0 < reset_s <= 60
    clock.now_s = _NOW_S + reset_s - 0.01
    assert (await _take(limiter)).is_refused
    clock.now_s = _NOW_S + reset_s
    assert await _take(limiter) == Verdict(_MINUTE, 9, 60, False)


async def test_each_client_has_its_own_budget() -> None:
    """A client's usage does not count for another, and their windows end at different times."""
    limiter = RateLimiter(Budgets([_MINUTE], 1), 0, clock=Clock())
    assert (await _take(limiter, 10)).remaining == 0
    verdicts = [await _take(limiter, client=f"client {number}") for number in range(20)]
    assert {verdict.remaining for verdict in verdicts} == {9}
    assert len({verdict.reset_s for verdict in verdicts}) > 5


async def test_refused_amounts_are_not_counted() -> None:
    """After three of ten, ten more are refused, and seven are still accepted."""
    limiter = RateLimiter(Budgets([_MINUTE], 1), 0, clock=Clock())
    assert (await _take(limiter, 3)).remaining == 7
    refused = await _take(limiter, 10)
    assert (refused.is_refused, refused.remaining) == (True, 7)
    assert (await _take(limiter, 7)).remaining == 0


async def test_the_tightest_of_several_rates_decides() -> None:
    """The rate per second refuses first, and what it refuses is not counted for the hour."""
    clock = Clock()
    rates = [Rate(2, 1), Rate(5, 3600)]
    limiter = RateLimiter(Budgets(rates, 1), 0, clock=clock)
    seconds = []
    for _ in range(3):
        seconds.append([await _take(limiter) for _ in range(4)])
        clock.now_s += 1
    refusals = [[verdict.is_refused for verdict in second] for second in seconds]
    assert refusals == [[False, False, True, True]] * 2 + [[False, True, True, True]]
    assert seconds[0][2].rate == rates[0]
    assert seconds[2][1].rate == rates[1]
    assert seconds[2][0] == Verdict(rates[1], 0, seconds[2][0].reset_s, False)


async def test_processes_share_a_budget() -> None:
    """Each process counts in its own cells, and sees the counts of the others."""
    budgets = Budgets([_MINUTE], 3)
    clock = Clock()
    limiters = [RateLimiter(budgets, number, clock=clock) for number in range(3)]
    assert [(await _take(limiter, 3)).remaining for limiter in limiters] == [7, 4, 1]
    assert [(await _take(limiter, 3)).is_refused for limiter in limiters] == [True] * 3
    assert (await _take(RateLimiter(budgets, 1, clock=clock))).remaining == 0, "a replaced process continues the counts"


def _hammer(budgets: Budgets, number: int, barrier: Barrier, allowed: mp.Queue[int]) -> None:
    limiter = RateLimiter(budgets, number, clock=Clock())
    barrier.wait(30)
    verdicts = [asyncio.run(_take(limiter, client=f"client {step % 5}")) for step in range(1000)]
    allowed.put(sum(not verdict.is_refused for verdict in verdicts))


def test_concurrent_processes_do_not_exceed_a_budget() -> None:
    """Four processes with two thousand tries too many for five clients allow none beyond the budgets."""
    context = mp.get_context("fork")
    budgets = Budgets([Rate(400, 86_400)], 4)
    barrier, allowed = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_hammer, args=(budgets, number, barrier, allowed)) for number in range(4)]
    for process in processes:
        process.start()
    counts = [allowed.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    assert sum(counts) == 5 * 400


def _take_and_die(budgets: Budgets) -> None:
    assert asyncio.run(_take(RateLimiter(budgets, 0, clock=Clock()), 6)).remaining == 4
    os.kill(os.getpid(), signal.SIGKILL)


async def test_counts_survive_killed_processes() -> None:
    """The successor and the other processes continue them."""
    budgets = Budgets([_MINUTE], 2)
    process = mp.get_context("fork").Process(target=_take_and_die, args=(budgets,))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert [(await _take(RateLimiter(budgets, number, clock=Clock()))).remaining for number in (0, 1)] == [3, 2]


def test_a_full_set_evicts_the_client_with_the_least_usage() -> None:
    """A flood of clients in the same set does not evict the heaviest user."""
    counts = SharedCounts(2)
    column = CountColumn(counts, 0)
    heavy = 7
    assert column.add(heavy, 100, 2000, 1000.0) == 100
    flood = [heavy + _SETS * number for number in range(1, 200)]
    assert [column.add(key, 1, 2000, 1000.0) for key in flood] == [1] * len(flood)
    assert column.add(heavy, 1, 2000, 1000.0) == 101
    assert CountColumn(counts, 1).add(heavy, 1, 2000, 1000.0) == 102


def test_cells_of_past_windows_are_free() -> None:
    """A client with high usage in a past window is evicted before one with low usage now."""
    column = CountColumn(SharedCounts(1), 0)
    column.add(1, 1_000_000, 900, 800.0)
    recent = [1 + _SETS * number for number in range(1, _CELLS + 1)]
    for key in recent:
        column.add(key, 1, 2000, 1000.0)
    assert [column.add(key, 1, 2000, 1000.0) for key in recent] == [2] * _CELLS
    assert column.add(1, 0, 2000, 1000.0) == 0


def test_a_late_refund_is_ignored() -> None:
    """A refusal that arrives after the window's end does not change the next window's count."""
    column = CountColumn(SharedCounts(1), 0)
    column.add(1, 5, 2000, 1999.9)
    assert column.add(1, 3, 3000, 2000.1) == 3
    assert column.add(1, -5, 2000, 1999.9) == 0
    assert column.add(1, 1, 3000, 2000.2) == 4


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(-3, 9), st.sampled_from([1000, 2000])), max_size=60
    )
)
def test_the_table_agrees_with_a_plain_sum(steps: list[tuple[int, int, int, int]]) -> None:
    """For few clients, any process may count in any order; each window starts at zero."""
    counts = SharedCounts(3)
    columns = [CountColumn(counts, number) for number in range(3)]
    model: dict[tuple[int, int], tuple[int, int]] = {}  # (process, client) -> (window, used)
    for process, client, amount, end_s in steps:
        window, used = model.get((process, client), (end_s, 0))
        if window == end_s or amount > 0:
            model[process, client] = (end_s, max(0, (used if window == end_s else 0) + amount))
        total = sum(used for (_, who), (window, used) in model.items() if who == client and window == end_s)
        assert columns[process].add(client * _SETS + 5, amount, end_s, 500.0) == total


class OtherServers:
    """Scripted counts of other servers."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.are_there = True

    async def add(self, charges: Sequence[Charge]) -> list[int] | None:
        if not self.are_there:
            return None
        for charge in charges:
            self.used[charge.name] = self.used.get(charge.name, 0) + charge.amount
        return [self.used[charge.name] for charge in charges]


async def test_servers_share_a_budget() -> None:
    """Each server sees the other's counts; refused amounts are taken back."""
    others = OtherServers()
    one, two = (RateLimiter(Budgets([_MINUTE], 1), 0, others, Clock()) for _ in range(2))
    assert [(await _take(one, 6)).remaining, (await _take(two, 3)).remaining] == [4, 1]
    assert (await _take(two, 5)).is_refused
    assert set(others.used.values()) == {9}
    assert (await _take(two)).remaining == 0
    assert (await _take(one)).is_refused


async def test_a_server_uses_its_own_counts_without_the_shared_ones() -> None:
    """While the shared counts are unavailable, its own decide."""
    others = OtherServers()
    one, two = (RateLimiter(Budgets([_MINUTE], 1), 0, others, Clock()) for _ in range(2))
    assert [(await _take(one, 6)).remaining, (await _take(two, 3)).remaining] == [4, 1]
    others.are_there = False
    assert [(await _take(one)).remaining, (await _take(two)).remaining] == [3, 6]


@pytest.mark.parametrize("amount", [11, 1000])
async def test_more_than_a_budget_is_always_refused(amount: int) -> None:
    """A request above the whole budget uses none of it."""
    limiter = RateLimiter(Budgets([_MINUTE], 1), 0, clock=Clock())
    assert await _take(limiter, amount) == Verdict(_MINUTE, 10, (await _take(limiter, amount)).reset_s, True)
    assert (await _take(limiter)).remaining == 9
