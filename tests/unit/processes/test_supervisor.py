"""The supervisor, with real processes that do not exit when told to."""

from __future__ import annotations

import multiprocessing
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.context import ForkProcess

import pytest

from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import RecordPipe
from vit_api.ipc.slots import SlotTable
from vit_api.ipc.worker_board import WorkerBoard, WorkerState, WorkerStatus
from vit_api.metrics import HTTP_RESTARTS
from vit_api.processes import ending
from vit_api.processes.recovery import Recovery
from vit_api.processes.supervisor import Supervisor


class Unkillable(ForkProcess):
    """A process that its parent can't signal, like one blocked in a GPU driver."""

    def kill(self) -> None:
        pass

    def terminate(self) -> None:
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
def supervisor(started: list[ForkProcess]) -> Supervisor:
    """Return a supervisor of one HTTP process and one worker, which hangs and can't be killed."""
    table, board = SlotTable(1, 1, (1, 1, 3)), WorkerBoard(1)

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
        start_worker,
        worker_board=board,
        table=table,
        recovery=Recovery(table, [RecordPipe.for_requests(1)] * 2, [RecordPipe.for_answers(1)]),
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
    monkeypatch.setattr("vit_api.processes.supervisor._WORKER_STOP_S", 0.2)
    monkeypatch.setattr(supervisor, "_worker_stall_s", 1e12)  # so that the hang isn't detected first
    supervisor.start_http()
    supervisor.start_workers()
    ours, theirs = signals
    theirs.send(b"x")
    assert supervisor.watch(ours) == 0
    assert not supervisor.stop()


def test_processes_that_end_are_not_left_behind(supervisor: Supervisor) -> None:
    """Processes that exit on SIGTERM and those that need SIGKILL all count as stopped."""
    supervisor.start_http()
    assert supervisor.stop()
    stubborn = multiprocessing.get_context("fork").Process(target=_ignore_sigterm, daemon=True)
    stubborn.start()
    assert ending.end([stubborn], 0.1) == []


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
