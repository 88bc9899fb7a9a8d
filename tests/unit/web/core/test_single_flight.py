"""Single flight, with computations that the test ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from anyio.lowlevel import checkpoint

from vit_api.errors import DeadlineExceeded, InferenceFailed
from vit_api.web.core.single_flight import FlightDeadline, SingleFlight

pytestmark = pytest.mark.anyio
_LONG_S = 60.0
_FUTURE = time.monotonic() + 1e6  # later than any run of the suite


class Work:
    """Computations that end when the test ends them."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self, deadline: FlightDeadline) -> str:
        self.started += 1
        try:
            return await asyncio.shield(self.outcome)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@pytest.fixture
async def flights() -> AsyncIterator[SingleFlight[str]]:
    """Yield a single flight, and check at the end that no flight is left."""
    single_flight: SingleFlight[str] = SingleFlight()
    yield single_flight
    await checkpoint()
    assert not single_flight._flights


@pytest.fixture
async def work() -> Work:
    """Return a computation that the test ends."""
    return Work()


def join(flights: SingleFlight[str], work: Work, key: str = "k", timeout_s: float = _LONG_S) -> asyncio.Task:
    """Join a flight in a task of its own."""
    return asyncio.ensure_future(flights.join(key, time.monotonic() + timeout_s, work))


async def test_one_computation_for_all(flights: SingleFlight[str], work: Work) -> None:
    """The first caller starts it, the others join, and each gets its value."""
    assert not flights.is_in_flight("k")
    waiters = [join(flights, work) for _ in range(50)]
    await checkpoint()
    assert flights.is_in_flight("k")
    work.outcome.set_result("done")
    assert await asyncio.gather(*waiters) == ["done"] * 50
    assert work.started == 1


async def test_other_keys_and_later_calls_compute_themselves(flights: SingleFlight[str], work: Work) -> None:
    """Only a computation in flight with the same key is shared."""
    waiters = [join(flights, work, key) for key in "ab"]
    await checkpoint()
    work.outcome.set_result("done")
    await asyncio.gather(*waiters)
    assert await join(flights, work, "a") == "done"
    assert work.started == 3


@pytest.mark.parametrize("who", [0, 1, 2])
async def test_a_caller_that_leaves_does_not_affect_the_others(
    who: int, flights: SingleFlight[str], work: Work
) -> None:
    """This includes the caller that started the computation."""
    waiters = [join(flights, work) for _ in range(3)]
    await checkpoint()
    waiters.pop(who).cancel()
    await checkpoint()
    work.outcome.set_result("done")
    assert await asyncio.gather(*waiters) == ["done"] * 2
    assert (work.started, work.cancelled) == (1, 0)


async def test_when_the_last_one_leaves_the_computation_is_cancelled(flights: SingleFlight[str], work: Work) -> None:
    """A caller that joins at that moment starts a new computation."""
    waiters = [join(flights, work) for _ in range(3)]
    await checkpoint()
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    late = join(flights, work)
    await checkpoint()
    await checkpoint()
    assert (work.started, work.cancelled) == (2, 1)
    work.outcome.set_result("done")
    assert await late == "done"


async def test_each_has_its_own_deadline(flights: SingleFlight[str], work: Work) -> None:
    """One caller times out; the other one still gets the value."""
    hasty, patient = join(flights, work, timeout_s=0.01), join(flights, work)
    with pytest.raises(DeadlineExceeded):
        await hasty
    work.outcome.set_result("done")
    assert await patient == "done"
    assert work.cancelled == 0


async def test_at_the_last_deadline_the_computation_is_cancelled(flights: SingleFlight[str], work: Work) -> None:
    """No caller is waiting for it any more."""
    waiters = [join(flights, work, timeout_s=timeout_s) for timeout_s in (0.01, 0.02)]
    outcomes = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded] * 2
    await checkpoint()
    assert work.cancelled == 1


async def test_a_failure_reaches_all_waiters_and_is_not_kept(flights: SingleFlight[str], work: Work) -> None:
    """A later caller starts a new computation."""
    waiters = [join(flights, work) for _ in range(3)]
    await checkpoint()
    work.outcome.set_exception(InferenceFailed("planted"))
    outcomes = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InferenceFailed] * 3
    work.outcome = asyncio.get_running_loop().create_future()
    work.outcome.set_result("better")
    assert await join(flights, work) == "better"


async def test_a_waiter_that_waits_longer_extends_the_deadline(flights: SingleFlight[str], work: Work) -> None:
    """The computation is told of the last deadline, and not of earlier ones."""
    told: list[float] = []

    async def compute(deadline: FlightDeadline) -> str:
        deadline.on_extend = told.append
        return await work(deadline)

    waiters = [asyncio.ensure_future(flights.join("k", at, compute)) for at in (_FUTURE, _FUTURE + 5, _FUTURE + 2)]
    await checkpoint()
    await checkpoint()
    assert told in ([_FUTURE + 5], [])  # it may have begun when all had joined
    assert flights._flights["k"].deadline.at == _FUTURE + 5
    work.outcome.set_result("done")
    await asyncio.gather(*waiters)


async def test_a_value_from_elsewhere_settles_a_flight(flights: SingleFlight[str], work: Work) -> None:
    """All its waiters get the value, and its computation is cancelled; without a flight nothing happens."""
    flights.settle("k", "early")
    waiters = [join(flights, work) for _ in range(2)]
    await checkpoint()
    await checkpoint()
    flights.settle("k", "found")
    assert not flights.has_any
    assert await asyncio.gather(*waiters) == ["found"] * 2
    assert (work.started, work.cancelled) == (1, 1)
