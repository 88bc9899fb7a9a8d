"""Single flight among processes: one computes, the others wait, and one takes over if it has no result."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable

import pytest

from tests.support.remote_process import RemoteProcess
from tests.support.waiting import LONG_S, until
from vit_api.ipc.flight_board import FlightBoard, ProcessFlights
from vit_api.web.core.shared_flights import SharedFlights, Turn

_KEY = hashlib.sha256(b"a key").digest()
pytestmark = pytest.mark.anyio


class Bench:
    """The flights of this process, another process, and its results."""

    def __init__(self) -> None:
        self.board = FlightBoard(2)
        self.flights = SharedFlights(ProcessFlights(self.board, 0))
        self.other = RemoteProcess(self.board, 1)
        self.found: str | None = None

    def claim(self, max_wait_s: float = LONG_S) -> asyncio.Task[Turn[str]]:
        return asyncio.create_task(self.flights.claim(_KEY, lambda: self.found, max_wait_s))

    def is_waiting(self) -> bool:
        return any(self.board.waiting)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """Make a bench whose other process computes the key."""
    made = Bench()
    made.flights.start()
    assert made.other("claim", _KEY)
    yield made
    made.flights.stop()
    made.other.kill()


async def test_a_free_key_is_claimed(bench: Bench) -> None:
    """It is claimed without waiting; after its release the other process can claim it."""
    bench.other("release", _KEY)
    assert await bench.claim() == Turn(None, has_waited=False, is_held=True)
    assert not bench.other("claim", _KEY)
    bench.flights.release(_KEY)
    assert bench.other("claim", _KEY)


async def test_what_was_found_before_the_claim_is_not_computed(bench: Bench) -> None:
    """The other process may finish between look-up and claim; no claim is then kept."""
    bench.other("release", _KEY)
    bench.found = "the result"
    assert await bench.claim() == Turn("the result", has_waited=False, is_held=False)
    assert bench.other("claim", _KEY)


async def test_the_result_of_another_process_is_waited_for(bench: Bench) -> None:
    """It is looked up when that process releases the key."""
    claim = bench.claim()
    await until(bench.is_waiting)
    bench.found = "the result"
    bench.other("release", _KEY)
    assert await claim == Turn("the result", has_waited=True, is_held=False)
    assert not bench.is_waiting()


def _release(bench: Bench) -> None:
    bench.other("release", _KEY)


@pytest.mark.parametrize(
    "end", [pytest.param(_release, id="failed"), pytest.param(lambda bench: bench.other.kill(), id="killed")]
)
async def test_if_another_process_has_no_result_it_is_computed_here(bench: Bench, end: Callable[[Bench], None]) -> None:
    """One of the waiters gets the claim."""
    claim = bench.claim()
    await until(bench.is_waiting)
    end(bench)
    assert await claim == Turn(None, has_waited=True, is_held=True)
    successor = RemoteProcess(bench.board, 1)
    assert not successor("claim", _KEY)
    bench.flights.release(_KEY)
    assert successor("claim", _KEY)
    successor.kill()


async def test_a_process_that_hangs_is_not_waited_for_any_longer(bench: Bench) -> None:
    """After the timeout the key is computed without a claim."""
    assert await bench.claim(max_wait_s=0.01) == Turn(None, has_waited=True, is_held=False)
    assert not bench.is_waiting()


async def test_a_cancelled_wait_leaves_nothing_behind(bench: Bench) -> None:
    """No waiter count and no claim are left."""
    claim = bench.claim()
    await until(bench.is_waiting)
    claim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claim
    assert not bench.is_waiting()
    bench.other("release", _KEY)
    assert bench.other("claim", _KEY)


async def test_a_claim_of_this_process_is_waited_for_too(bench: Bench) -> None:
    """Such as the claim of a caller that bypasses the cache."""
    bench.other("release", _KEY)
    assert bench.flights.claim_now(_KEY)
    assert not bench.flights.claim_now(_KEY)
    claim = bench.claim()
    await until(bench.is_waiting)
    bench.found = "the result"
    bench.flights.release(_KEY)
    assert await claim == Turn("the result", has_waited=True, is_held=False)
