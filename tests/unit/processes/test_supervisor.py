"""The supervisor, with real processes that do not exit when told to."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

from tests.support.server import wait_until
from vit_api.ipc.http_board import HttpBoard
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import RecordPipe, Status, unpack_answers
from vit_api.ipc.slots import OwnerSlots, SlotTable
from vit_api.ipc.worker_board import WorkerBoard, WorkerState, WorkerStatus
from vit_api.metrics import HTTP_RESTARTS
from vit_api.processes import ending
from vit_api.processes.recovery import Recovery
from vit_api.processes.supervisor import Supervisor, WorkerGroup


class Unkillable(ForkProcess):
    """A process that its parent can't signal, like one blocked in a GPU driver."""

    def kill(self) -> None:
        pass


def _sleep() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(600)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ForkProcess]]:
    """Yield a list of processes, which are killed after the test, unkillable ones included."""
    monkeypatch.setattr(ending, "_KILL_S", 0.2)
    processes: list[ForkProcess] = []
    yield processes
    for process in processes:
        ForkProcess.kill(process)
        process.join()


@pytest.fixture
def signals() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield the socket that the supervisor reads signals from, and its peer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def http_board() -> HttpBoard:
    """Return the heartbeats of one HTTP process."""
    return HttpBoard(1)


@pytest.fixture
def supervisor(started: list[ForkProcess], http_board: HttpBoard) -> Supervisor:
    """Return a supervisor of one HTTP process and one worker, which hangs and can't be killed."""
    table, board = SlotTable(1, 1, (1, 1, 3)), WorkerBoard(1)
    recovery = Recovery(table, [RecordPipe.for_requests(1)] * 2, [RecordPipe.for_answers(1)])

    def start(process: ForkProcess) -> ForkProcess:
        process.start()
        started.append(process)
        return process

    def start_worker(number: int) -> ForkProcess:
        board.publish(number, WorkerStatus(WorkerState.READY, "cuda:0", "GPU", "float16"))
        board.heartbeat(number, 0.0)
        return start(Unkillable(target=_sleep, daemon=True))

    return Supervisor(
        lambda _: start(multiprocessing.get_context("fork").Process(target=_sleep, daemon=True)),
        1,
        [WorkerGroup(start_worker, board, table, recovery, ["worker-0"])],
        http_board=http_board,
        http_restarts=MetricsBoard(["main"], [HTTP_RESTARTS]).metrics_writer("main").counter(HTTP_RESTARTS),
        worker_stall_s=0.1,
        drain_delay_s=0.0,
        drain_timeout_s=0.2,
    )


def test_an_unkillable_worker_stops_the_server(
    supervisor: Supervisor,
    started: list[ForkProcess],
    signals: tuple[socket.socket, socket.socket],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The supervisor stops without waiting for it, logs why, and reports that the worker is left behind."""
    supervisor.start_http()
    supervisor.start_workers()
    assert supervisor.watch(signals[0]) == 1
    assert "worker-0 did not end when it was killed: its driver hangs; shutting down" in caplog.text
    assert not supervisor.stop()
    http, worker = started
    assert not http.is_alive()
    assert f"process {worker.pid} does not end, although it was killed; it is left behind" in caplog.text


def test_an_unkillable_worker_does_not_block_shutdown(
    supervisor: Supervisor, signals: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graceful stop doesn't wait for it either."""
    monkeypatch.setattr(supervisor, "_worker_stall_s", 1e12)  # so that the hang isn't detected first
    supervisor.start_http()
    supervisor.start_workers()
    ours, theirs = signals
    theirs.send(b"x")
    assert supervisor.watch(ours) == 0
    assert not supervisor.stop()


def test_processes_that_end_are_not_left_behind(supervisor: Supervisor) -> None:
    """Processes that ignore SIGTERM, which may reach the whole process group, count as stopped, too."""
    supervisor.start_http()
    assert supervisor.stop()
    stubborn = multiprocessing.get_context("fork").Process(target=_ignore_sigterm, daemon=True)
    stubborn.start()
    assert ending.end([stubborn]) == []


class Clock:
    """The clock of the main process, which a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock by which the supervisor looks at heartbeats."""
    clock = Clock()
    monkeypatch.setattr("vit_api.processes.supervisor.time", clock)
    monkeypatch.setattr(supervisor, "_checked_at", clock.now)
    return clock


def _check_for(supervisor: Supervisor, clock: Clock, seconds: float) -> None:
    for _ in range(round(seconds / 0.5)):
        clock.now += 0.5
        supervisor._check()


def test_a_silent_http_process_is_replaced(
    supervisor: Supervisor,
    http_board: HttpBoard,
    clock: Clock,
    started: list[ForkProcess],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not before the limit, which starts again for its successor."""
    supervisor.start_http()
    http_board.heartbeat(0)
    _check_for(supervisor, clock, 8)
    assert [process.is_alive() for process in started] == [True]
    _check_for(supervisor, clock, 1)
    assert [process.is_alive() for process in started] == [False, True]
    assert "http-0 made no progress for 8 s; killing it" in caplog.text
    http_board.heartbeat(0)
    _check_for(supervisor, clock, 8)
    assert [process.is_alive() for process in started] == [False, True]
    supervisor.stop()


def test_an_http_process_that_never_begins_is_replaced(
    supervisor: Supervisor, clock: Clock, started: list[ForkProcess]
) -> None:
    """It has more time than between two heartbeats, on a busy machine."""
    supervisor.start_http()
    _check_for(supervisor, clock, 30)
    assert [process.is_alive() for process in started] == [True]
    _check_for(supervisor, clock, 31)
    assert [process.is_alive() for process in started] == [False, True]
    supervisor.stop()


@pytest.mark.parametrize("pause_s", [pytest.param(3600.0, id="suspended"), pytest.param(30.0, id="starved")])
def test_no_process_hangs_while_all_are_suspended(
    supervisor: Supervisor, http_board: HttpBoard, clock: Clock, started: list[ForkProcess], pause_s: float
) -> None:
    """However often: what counts is the time for which the main process itself ran."""
    supervisor.start_http()
    supervisor._worker_stall_s = 60.0
    supervisor.start_workers()
    http_board.heartbeat(0)
    for _ in range(7):
        clock.now += pause_s
        supervisor._check()
    assert [process.is_alive() for process in started] == [True, True]
    supervisor.stop()


def test_a_hung_http_process_does_not_hold_up_a_stop(
    supervisor: Supervisor,
    http_board: HttpBoard,
    started: list[ForkProcess],
    signals: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It can't finish its requests: it is killed, and the server ends before the drain time does."""
    monkeypatch.setattr("vit_api.processes.supervisor._HTTP_STALL_S", 0.2)
    monkeypatch.setattr(supervisor, "_drain_timeout_s", 3600.0)
    supervisor.start_http()
    http_board.heartbeat(0)
    assert started[0].pid is not None
    os.kill(started[0].pid, signal.SIGSTOP)
    stat = Path(f"/proc/{started[0].pid}/stat")
    # A SIGTERM that arrives before the process has stopped would still end it.
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    ours, theirs = signals
    theirs.send(b"x")
    assert supervisor.watch(ours) == 0
    assert not started[0].is_alive()
    assert "http-0 made no progress" in caplog.text


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


class TwoGroups:
    """A supervisor of two groups of one worker each: real processes, which a test kills."""

    def __init__(self, http_board: HttpBoard, started: list[ForkProcess]) -> None:
        self._started = started
        whole, table = WorkerBoard(2), SlotTable(1, 4, (1, 1, 3), deployments=2)
        self.boards = [whole.part(number, 1) for number in range(2)]
        self.tables = [table.of_deployment(number, (1, 1, 3)) for number in range(2)]
        self.answers = [RecordPipe.for_answers(4) for _ in range(2)]
        self.groups = [self._group(number) for number in range(2)]
        self.supervisor = Supervisor(
            lambda _: self._start(_sleep),
            1,
            self.groups,
            http_board=http_board,
            http_restarts=MetricsBoard(["main"], [HTTP_RESTARTS]).metrics_writer("main").counter(HTTP_RESTARTS),
            worker_stall_s=1e9,
            drain_delay_s=0.0,
            drain_timeout_s=0.2,
        )

    def _group(self, number: int) -> WorkerGroup:
        requests = [RecordPipe.for_requests(4) for _ in range(2)]
        recovery = Recovery(self.tables[number], requests, [self.answers[number]])
        return WorkerGroup(
            lambda worker: self._start_worker(number, worker),
            self.boards[number],
            self.tables[number],
            recovery,
            [f"worker-{number}"],
            f"shop {number}",
        )

    def _start(self, target: Callable[[], None]) -> ForkProcess:
        process = multiprocessing.get_context("fork").Process(target=target, daemon=True)
        process.start()
        self._started.append(process)
        return process

    def _start_worker(self, number: int, worker: int) -> ForkProcess:
        self.boards[number].publish(worker, WorkerStatus(WorkerState.READY, "cpu", "CPU", "float32"))
        return self._start(_sleep)

    def kill(self, number: int) -> None:
        """Kill the worker of a group, and have the supervisor see it."""
        process = self.groups[number].members[0].process
        process.kill()
        process.join()
        self.supervisor._check()


@pytest.fixture
def two(http_board: HttpBoard, started: list[ForkProcess]) -> TwoGroups:
    two = TwoGroups(http_board, started)
    two.supervisor.start_http()
    two.supervisor.start_workers()
    return two


def _queue(table: SlotTable, owner: OwnerSlots) -> tuple[int, int]:
    taken = owner.take()
    assert taken is not None
    owner.queue(taken[0], 0.0)
    return taken


def test_a_group_that_keeps_dying_is_given_up_alone(two: TwoGroups, caplog: pytest.LogCaptureFixture) -> None:
    """The images that wait for it fail, also those that enter its queue later; the other group's are not touched."""
    first = OwnerSlots(two.tables[0], 0)
    second = OwnerSlots(two.tables[1], 0, first)
    mine, other = _queue(two.tables[0], first), _queue(two.tables[1], second)
    kept = two.groups[1].members[0].process
    for _ in range(6):
        two.kill(0)
    assert two.groups[0].has_failed
    assert two.boards[0].is_gone()
    assert not two.boards[1].is_gone()
    assert not two.boards[1].is_draining()
    assert kept.is_alive()
    assert "worker-0 died more than 5 times in a minute; shop 0 is no longer served" in caplog.text
    answers = list(unpack_answers(two.answers[0].read(9)))
    assert [(answer.slot, answer.status) for answer in answers] == [(mine[0], Status.UNAVAILABLE)]
    late = _queue(two.tables[0], first)
    two.supervisor._check()
    assert late[0] in {answer.slot for answer in unpack_answers(two.answers[0].read(9))}
    assert two.tables[1].queued() == [other]
    assert two.answers[1].read(9) == b""


def test_a_group_that_does_not_start_is_given_up_alone(two: TwoGroups, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that ends before it was ready is not started again."""
    two.boards[0].publish(0, WorkerStatus(WorkerState.STARTING, "", "", ""))
    two.kill(0)
    assert two.groups[0].has_failed
    assert "worker-0 failed to start; the log above says why; shop 0 is no longer served" in caplog.text
    assert two.groups[1].members[0].process.is_alive()


def test_the_last_group_stops_the_server(two: TwoGroups, signals: tuple[socket.socket, socket.socket]) -> None:
    """With no worker left, the server ends with a non-zero status."""
    for _ in range(6):
        two.kill(0)
    for _ in range(5):
        two.kill(1)
    two.groups[1].members[0].process.kill()
    assert two.supervisor.watch(signals[0]) == 1
    assert two.supervisor.stop()


def test_a_failed_group_does_not_hinder_a_stop(two: TwoGroups, signals: tuple[socket.socket, socket.socket]) -> None:
    """The exit status is that of a stop."""
    for _ in range(6):
        two.kill(0)
    ours, theirs = signals
    theirs.send(b"x")
    assert two.supervisor.watch(ours) == 0
    assert two.supervisor.stop()


def test_a_group_on_trial_that_can_not_start_leaves_the_server_alone(two: TwoGroups) -> None:
    """Even if it is the only one left: it is given up at its first death, and says why."""
    two.groups[0].has_failed = True
    two.groups[1].is_on_trial = True
    two.boards[1].publish(0, WorkerStatus(WorkerState.STARTING, "cpu", "CPU", "float32"))
    two.kill(1)
    assert two.groups[1].has_failed
    assert "failed to start" in two.groups[1].problem


def test_a_group_can_be_added_and_removed(two: TwoGroups) -> None:
    """Its workers are replaced while it is there, and end when it is removed."""
    group = two._group(1)
    two.supervisor.add(group)
    first = group.members[0].process
    first.kill()
    first.join()
    two.supervisor._check()
    second = group.members[0].process
    assert second.pid != first.pid
    two.supervisor.remove(group)
    assert not second.is_alive()
    two.supervisor._check()
    assert group.members[0].process is second
