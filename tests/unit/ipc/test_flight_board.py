"""The flight board: at most one process holds a key, waiting ones are woken, and a dead one holds nothing."""

from __future__ import annotations

import hashlib
import multiprocessing as mp
import select
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.support.remote_process import RemoteProcess
from tests.support.waiting import LONG_S
from vit_api.ipc.flight_board import FlightBoard, ProcessFlights
from vit_api.ipc.shared_memory import SharedArrays

_KEY, _OTHER = (hashlib.sha256(text).digest() for text in (b"a key", b"another"))


StartProcess = Callable[[int], RemoteProcess]


@pytest.fixture
def board() -> FlightBoard:
    """Return a board for three processes."""
    return FlightBoard(3)


@pytest.fixture
def start(board: FlightBoard) -> Iterator[StartProcess]:
    """Return a function that starts a process; all are killed after the test."""
    started: list[RemoteProcess] = []

    def start_one(number: int) -> RemoteProcess:
        started.append(RemoteProcess(board, number))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()


def _is_readable(flights: ProcessFlights, timeout_s: float) -> bool:
    return bool(select.select([flights], [], [], timeout_s)[0])


def test_only_one_process_holds_a_key(board: FlightBoard, start: StartProcess) -> None:
    """No other process can claim the key until it is released; other keys are free."""
    first, second = start(0), start(1)
    assert first("claim", _KEY)
    assert not second("claim", _KEY)
    assert second("claim", _OTHER)
    first("release", _KEY)
    assert second("claim", _KEY)
    assert not first("claim", _KEY)


def test_a_process_cannot_claim_a_key_twice(board: FlightBoard) -> None:
    """The kernel's locks would allow it, and the first release would free the key for both."""
    flights = ProcessFlights(board, 0)
    assert (flights.claim(_KEY), flights.claim(_KEY)) == (True, False)
    flights.release(_KEY)
    assert flights.claim(_KEY)


def test_a_dead_process_holds_no_key(board: FlightBoard, start: StartProcess) -> None:
    """Exactly one waiting process gets the key of a killed one."""
    first, *others = start(0), start(1), start(2)
    assert first("claim", _KEY)
    assert [other("claim", _KEY) for other in others] == [False, False]
    first.kill()
    assert [other("claim", _KEY) for other in others] == [True, False]
    assert not start(0)("claim", _KEY)


def test_a_release_wakes_the_processes_that_wait(board: FlightBoard, start: StartProcess) -> None:
    """Only processes that wait for this key, and no longer than they wait, are notified."""
    first, waiting, idle = start(0), ProcessFlights(board, 1), ProcessFlights(board, 2)
    assert first("claim", _KEY)
    assert not waiting.claim(_KEY)
    waiting.begin_wait(_KEY)
    first("release", _KEY)
    assert _is_readable(waiting, LONG_S)
    assert waiting.read() == [_KEY]
    assert not _is_readable(idle, 0)
    waiting.end_wait(_KEY)
    assert first("claim", _KEY)
    first("release", _KEY)
    assert not _is_readable(waiting, 0)


def test_a_process_that_does_not_read_blocks_no_other(board: FlightBoard) -> None:
    """Notifications to a full pipe are dropped."""
    flights, slow = ProcessFlights(board, 0), ProcessFlights(board, 1)
    slow.begin_wait(_KEY)
    for _ in range(10_000):
        assert flights.claim(_KEY)
        flights.release(_KEY)
    assert set(slow.read()) == {_KEY}


def test_a_dead_process_waits_for_nothing(board: FlightBoard, start: StartProcess) -> None:
    """Its successor is not woken for its keys; other processes that wait still are."""
    flights, other = ProcessFlights(board, 0), ProcessFlights(board, 2)
    other.begin_wait(_KEY)
    first = start(1)
    first("begin_wait", _KEY)
    first.kill()
    successor = ProcessFlights(board, 1)
    assert flights.claim(_KEY)
    flights.release(_KEY)
    assert (successor.read(), other.read()) == ([], [_KEY])


def _take_turns(board: FlightBoard, shared: SharedArrays, number: int, turns: int) -> None:
    """Claim and release a key repeatedly, and check that no other process holds it meanwhile."""
    flights, held, done = ProcessFlights(board, number), shared["held"], 0
    while done < turns:
        if flights.claim(_KEY):
            assert held[0] == 0
            held[0] = 1
            time.sleep(0)
            held[0] = 0
            flights.release(_KEY)
            done += 1


def test_no_two_processes_hold_a_key_at_once(board: FlightBoard) -> None:
    """Three processes compete for one key, 300 times each."""
    context, shared = mp.get_context("fork"), SharedArrays({"held": (np.uint8, (1,))})
    processes = [context.Process(target=_take_turns, args=(board, shared, number, 300)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LONG_S)
    assert [process.exitcode for process in processes] == [0, 0, 0]
