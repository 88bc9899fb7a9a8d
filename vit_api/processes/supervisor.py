"""Keeps the server's processes alive, and ends them. For the main process.

Starts the HTTP processes and the workers, starts again what dies or hangs, and stops all on a signal. Knows neither
LitServe nor HTTP nor models; what becomes of a dead worker's images is `recovery`'s.
"""

from __future__ import annotations

import functools
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from socket import socket

from vit_api.ipc.metrics_board import Counter
from vit_api.ipc.slots import MAX_DEATHS, SlotTable
from vit_api.ipc.worker_board import WorkerBoard, WorkerState
from vit_api.processes.recovery import Recovery

logger = logging.getLogger(__name__)

_TICK_S = 0.5
"""Between two looks at whether a worker hangs."""

_MOST_RESTARTS = 5
_RESTART_WINDOW_S = 60.0
_WORKER_STOP_S = 5.0
_LAST_ANSWERS_S = 5.0
"""What HTTP processes get to answer what waits, when the workers are gone for good."""
_LAST_TICK_S = 0.05
_BEAT_SLACK_S = 1.0
"""An idle worker's last sign of life may be so old."""
_SLEPT_S = 2.0


class _WorkersHopeless(Exception):
    """A worker can't be kept alive."""


class _HttpHopeless(Exception):
    """An HTTP process can't be kept alive."""


StartProcess = Callable[[int], BaseProcess]


@dataclass
class _Member:
    """A process that is always there, in whichever incarnation.

    Attributes:
        name: For the log.
        start: Starts it.
        process: The present incarnation.
        restarts: When it was started again, as far as it matters.
    """

    name: str
    start: Callable[[], BaseProcess]
    process: BaseProcess
    restarts: deque[float] = field(default_factory=deque)

    def forgive(self) -> None:
        """Forget the last deaths, whose cause is known and gone."""
        for _ in range(min(MAX_DEATHS, len(self.restarts))):
            self.restarts.pop()

    def may_restart(self, *, worked: bool = True) -> bool:
        """Note a restart, and tell whether there were not too many lately, or in a row before it `worked` again."""
        now = time.monotonic()
        while worked and self.restarts and now - self.restarts[0] > _RESTART_WINDOW_S:
            self.restarts.popleft()
        self.restarts.append(now)
        return len(self.restarts) <= _MOST_RESTARTS


class Supervisor:
    """Keep HTTP processes and workers alive until a signal.

    Args:
        start_http: Starts the HTTP process of a number.
        http_processes: How many there are.
        start_worker: Starts the worker of a number.
        board: What the workers say of themselves; it says how many there are.
        table: What waits for them.
        recovery: Takes care of a dead worker's images.
        http_restarts: Counts the HTTP processes that are started again.
        worker_stall_s: Seconds without progress after which a worker is killed.
        drain_delay_s: Seconds between the first signal, from which on the server says that it is not ready, and the
            end of its taking connections.
        drain_timeout_s: Seconds that requests under way get at the end.
    """

    def __init__(
        self,
        start_http: StartProcess,
        http_processes: int,
        start_worker: StartProcess,
        *,
        board: WorkerBoard,
        table: SlotTable,
        recovery: Recovery,
        http_restarts: Counter,
        worker_stall_s: float,
        drain_delay_s: float,
        drain_timeout_s: float,
    ) -> None:
        self._start_http = start_http
        self._http_processes = http_processes
        self._start_worker = start_worker
        self._board = board
        self._table = table
        self._recovery = recovery
        self._http_restarts = http_restarts
        self._worker_stall_s = worker_stall_s
        self._drain_delay_s = drain_delay_s
        self._drain_timeout_s = drain_timeout_s
        self._http: list[_Member] = []
        self._workers: list[_Member] = []
        self._awake_since = 0.0

    def start_http(self) -> None:
        """Start the HTTP processes; before the workers, so that probes are answered while the model loads."""
        self._http = [
            _Member(f"http-{number}", functools.partial(self._start_http, number), self._start_http(number))
            for number in range(self._http_processes)
        ]

    def start_workers(self) -> None:
        """Start the workers."""
        self._workers = [
            _Member(f"worker-{number}", functools.partial(self._start_worker, number), self._start_worker(number))
            for number in range(self._board.workers)
        ]

    def watch(self, stop: socket) -> int:
        """Keep all alive until a signal, then drain. Return the exit status: 0 after a signal, 1 after giving up.

        Args:
            stop: Has a byte to read for each signal that came.
        """
        try:
            while not self._wait(stop, _TICK_S):
                self._replace_dead_workers()
                self._replace_dead_http()
            self._drain(stop)
        except _WorkersHopeless as error:
            logger.error("%s; stopping", error)
            self._give_up(stop)
            return 1
        except _HttpHopeless as error:
            logger.error("%s; stopping", error)
            self._finish_requests(stop)
            return 1
        return 0

    def stop(self) -> None:
        """End what still runs, at once."""
        _end([member.process for member in self._http], 0.0)
        _end([member.process for member in self._workers], _WORKER_STOP_S)

    def _wait(self, stop: socket, timeout_s: float) -> bool:
        """Wait until a process ends or the time is up; tell whether a signal came."""
        sentinels = [member.process.sentinel for member in (*self._http, *self._workers)]
        before = time.monotonic()
        ready = wait([stop, *sentinels], max(0.0, timeout_s))
        if time.monotonic() - before > timeout_s + _SLEPT_S:
            self._awake_since = time.monotonic()  # this process was stopped, and so maybe were the workers
        if stop in ready:
            stop.recv(1)
        return stop in ready

    def _drain(self, stop: socket) -> None:
        """Say that the server is not ready, then have the HTTP processes finish; a second signal ends that at once."""
        logger.info("stopping: not ready from now on")
        self._board.mark_draining()
        end = time.monotonic() + self._drain_delay_s
        while (left_s := end - time.monotonic()) > 0:
            if self._wait(stop, min(left_s, _TICK_S)):
                return
            self._replace_dead_workers()
            self._replace_dead_http()
        self._finish_requests(stop)

    def _finish_requests(self, stop: socket) -> None:
        """Close the port and wait for the answers to what was accepted, until another signal or the time limit."""
        self._board.mark_draining()
        for member in self._http:
            member.process.terminate()
        end = time.monotonic() + self._drain_timeout_s
        while self._http:
            if self._wait(stop, min(_TICK_S, end - time.monotonic())):
                logger.warning("stopping at once: another signal came")
                return
            if time.monotonic() > end:
                logger.warning("requests were still under way after %g s; stopping", self._drain_timeout_s)
                return
            self._http = [member for member in self._http if member.process.is_alive()]
            self._replace_dead_workers()

    def _replace_dead_http(self) -> None:
        for member in self._http:
            if member.process.is_alive():
                continue
            _log_end(member)
            if not member.may_restart():
                raise _HttpHopeless(f"{member.name} died more than {_MOST_RESTARTS} times in a minute")
            member.process = member.start()
            self._http_restarts.add()
            self._recovery.http_process_died()

    def _replace_dead_workers(self) -> None:
        for number, member in enumerate(self._workers):
            if member.process.is_alive() and self._hangs(number):
                logger.error("%s made no progress for %g s; killing it", member.name, self._worker_stall_s)
                member.process.kill()
                member.process.join()
            if not member.process.is_alive():
                _log_end(member)
                self._restart_worker(number, member)

    def _restart_worker(self, number: int, member: _Member) -> None:
        state = self._board.read(number).state
        if state == WorkerState.STARTING:
            raise _WorkersHopeless(f"{member.name} did not even start")
        held = self._table.held_by(number)
        if len(held) == 1 and self._table.is_isolated(held[0][0]):
            member.forgive()  # the image is to blame, also for the deaths before, and will not be tried again
        elif not member.may_restart(worked=state == WorkerState.READY):
            raise _WorkersHopeless(f"{member.name} died more than {_MOST_RESTARTS} times in a minute")
        self._board.mark_restarting(number)
        self._recovery.worker_died(number)
        member.process = member.start()

    def _hangs(self, number: int) -> bool:
        """Tell whether a worker makes no progress; an idle one shows every second that it is alive."""
        if self._board.read(number).state != WorkerState.READY:
            return False  # loading a model takes as long as it takes
        last_s = max(self._board.progress_at(number), self._awake_since)
        return time.monotonic() - last_s > self._worker_stall_s + _BEAT_SLACK_S

    def _give_up(self, stop: socket) -> None:
        """Answer what waits with a failure, then have the HTTP processes end."""
        self._board.mark_draining()
        self._board.mark_gone()
        self._workers = []
        for member in self._http:
            member.process.terminate()
        end = time.monotonic() + _LAST_ANSWERS_S
        while any(member.process.is_alive() for member in self._http) and time.monotonic() < end:
            self._recovery.give_up()  # again and again: some images may still be on their way to the queue
            self._http = [member for member in self._http if member.process.is_alive()]
            if self._wait(stop, _LAST_TICK_S):
                return


def _log_end(member: _Member) -> None:
    member.process.join()
    code = member.process.exitcode
    how = signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"
    logger.error("%s ended by itself (%s)", member.name, how)


def _end(processes: Iterable[BaseProcess], timeout_s: float) -> None:
    """Ask processes to end, wait for them, and kill those that don't."""
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.terminate()
    end = time.monotonic() + timeout_s
    for process in alive:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
