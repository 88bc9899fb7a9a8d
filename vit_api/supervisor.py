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

from vit_api.recovery import Recovery
from vit_api.slots import SlotTable
from vit_api.workers import WorkerBoard, WorkerState

logger = logging.getLogger(__name__)

_TICK_S = 0.5
"""Between two looks at whether a worker hangs."""

_MOST_RESTARTS = 5
_RESTART_WINDOW_S = 60.0
_WORKER_STOP_S = 5.0
_LAST_ANSWERS_S = 5.0
"""What HTTP processes get to answer what waits, when the workers are gone for good."""
_LAST_TICK_S = 0.05

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
        self._worker_stall_s = worker_stall_s
        self._drain_delay_s = drain_delay_s
        self._drain_timeout_s = drain_timeout_s
        self._http: list[_Member] = []
        self._workers: list[_Member] = []

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
        while not self._wait(stop):
            if not self._replace_dead():
                return 1
        logger.info("stopping: not ready from now on")
        self._board.mark_draining()
        if self._wait_until(stop, time.monotonic() + self._drain_delay_s):
            return self._drain(stop)
        return 0

    def stop(self) -> None:
        """End what still runs, at once."""
        _kill_after([member.process for member in self._http], 0.0)
        _kill_after([member.process for member in self._workers], _WORKER_STOP_S)

    def _wait(self, stop: socket, timeout_s: float = _TICK_S) -> bool:
        """Wait until a process ends or the time is up; tell whether a signal came."""
        sentinels = [member.process.sentinel for member in (*self._http, *self._workers)]
        if stop in wait([stop, *sentinels], timeout_s):
            stop.recv(1)
            return True
        return False

    def _wait_until(self, stop: socket, end: float) -> bool:
        """Keep all alive until `end`; tell whether no further signal came."""
        while (left_s := end - time.monotonic()) > 0:
            if self._wait(stop, min(left_s, _TICK_S)):
                return False
            self._replace_dead()
        return True

    def _drain(self, stop: socket) -> int:
        """Have the HTTP processes finish what they accepted; a second signal ends that at once."""
        for member in self._http:
            member.process.terminate()
        end = time.monotonic() + self._drain_timeout_s
        while self._http and time.monotonic() < end:
            if self._wait(stop, min(_TICK_S, max(0.0, end - time.monotonic()))):
                logger.warning("stopping at once: another signal came")
                return 0
            self._http = [member for member in self._http if member.process.is_alive()]
            self._replace_dead_workers()
        if self._http:
            logger.warning("requests were still under way after %g s; stopping all the same", self._drain_timeout_s)
        return 0

    def _replace_dead(self) -> bool:
        """Start again what died or hangs; tell whether that makes sense still."""
        return self._replace_dead_workers() and self._replace_dead_http()

    def _replace_dead_http(self) -> bool:
        for member in self._http:
            if not member.process.is_alive():
                _log_end(member)
                if not member.may_restart():
                    logger.error("%s died more than %d times in a minute; stopping", member.name, _MOST_RESTARTS)
                    return False
                member.process = member.start()
        return True

    def _replace_dead_workers(self) -> bool:
        for number, member in enumerate(self._workers):
            if member.process.is_alive() and self._hangs(number):
                logger.error("%s made no progress for %g s; killing it", member.name, self._worker_stall_s)
                member.process.kill()
                member.process.join()
            if not member.process.is_alive():
                _log_end(member)
                if not self._restart_worker(number, member):
                    self._give_up()
                    return False
        return True

    def _restart_worker(self, number: int, member: _Member) -> bool:
        state = self._board.read(number).state
        if state == WorkerState.STARTING:
            logger.error("%s did not even start; stopping", member.name)
            return False
        if not member.may_restart(worked=state == WorkerState.READY):
            logger.error("%s died more than %d times in a minute; stopping", member.name, _MOST_RESTARTS)
            return False
        self._board.mark_restarting(number)
        self._recovery.worker_died(number)
        member.process = member.start()
        return True

    def _hangs(self, number: int) -> bool:
        """Tell whether a worker makes no progress: its batch takes too long, or it is idle while images wait."""
        if self._board.read(number).state != WorkerState.READY:
            return False  # loading a model takes as long as it takes
        since = self._board.busy_since(number) or self._table.oldest_queued_at()
        return since is not None and time.monotonic() - max(since, self._board.ready_at(number)) > self._worker_stall_s

    def _give_up(self) -> None:
        """Answer what waits with a failure, then have the HTTP processes end."""
        self._board.mark_draining()
        self._board.mark_gone()
        for member in self._http:
            member.process.terminate()
        end = time.monotonic() + _LAST_ANSWERS_S
        while any(member.process.is_alive() for member in self._http) and time.monotonic() < end:
            self._recovery.give_up()  # again and again: some images may still be on their way to the queue
            wait([member.process.sentinel for member in self._http if member.process.is_alive()], _LAST_TICK_S)


def _log_end(member: _Member) -> None:
    member.process.join()
    code = member.process.exitcode
    how = signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"
    logger.error("%s ended by itself (%s)", member.name, how)


def _kill_after(processes: Iterable[BaseProcess], timeout_s: float) -> None:
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
