"""Keeps the server's processes alive and stops them. For the main process.

Starts the HTTP processes and the workers, restarts those that die or hang, and shuts down on a signal. Knows nothing of
LitServe, HTTP or models; `recovery` takes care of a dead worker's images.
"""

from __future__ import annotations

import functools
import logging
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from socket import socket

from vit_api.ipc.metrics_board import Counter
from vit_api.ipc.slots import MAX_DEATHS, SlotTable
from vit_api.ipc.worker_board import WorkerBoard, WorkerState
from vit_api.processes import ending
from vit_api.processes.recovery import Recovery

logger = logging.getLogger(__name__)

_TICK_S = 0.5
"""Interval between two checks for hung workers."""

_MAX_RESTARTS = 5
_RESTART_WINDOW_S = 60.0
_WORKER_STOP_S = 5.0
_LAST_ANSWERS_S = 5.0
"""Time for HTTP processes to answer waiting requests once the workers are gone."""
_LAST_TICK_S = 0.05
_HEARTBEAT_SLACK_S = 1.0
"""Maximum age of an idle worker's heartbeat."""
_SUSPENDED_S = 2.0
"""A wait that exceeds its timeout by this means that this process was suspended."""


class _WorkerCrashLoop(Exception):
    """A worker can't be kept alive."""


class _HttpCrashLoop(Exception):
    """An HTTP process can't be kept alive."""


StartProcess = Callable[[int], BaseProcess]


@dataclass
class _Member:
    """A process that is restarted whenever it ends.

    Attributes:
        name: Its name in the log.
        start: Starts it.
        process: The current process.
        restarts: The times of its recent restarts.
    """

    name: str
    start: Callable[[], BaseProcess]
    process: BaseProcess
    restarts: deque[float] = field(default_factory=deque)

    def reset_restart_budget(self) -> None:
        """Discard the last restarts, whose cause is known and gone."""
        for _ in range(min(MAX_DEATHS, len(self.restarts))):
            self.restarts.pop()

    def may_restart(self, *, worked: bool = True) -> bool:
        """Count a restart, and return whether the restart budget allows it.

        Args:
            worked: Whether the process had become ready; otherwise old restarts count, too.
        """
        now = time.monotonic()
        while worked and self.restarts and now - self.restarts[0] > _RESTART_WINDOW_S:
            self.restarts.popleft()
        self.restarts.append(now)
        return len(self.restarts) <= _MAX_RESTARTS


class Supervisor:
    """Keep HTTP processes and workers alive until a signal.

    Args:
        start_http: Starts the HTTP process with a given number.
        http_processes: Number of HTTP processes.
        start_worker: Starts the worker with a given number.
        worker_board: The status of the workers, and their number.
        table: The images that wait for them.
        recovery: Takes care of a dead worker's images.
        http_restarts: Counts restarted HTTP processes.
        worker_stall_s: Seconds without progress after which a worker is killed.
        drain_delay_s: Seconds from the first signal, when readiness turns off, until the port is closed.
        drain_timeout_s: Seconds that requests in flight get to finish.
    """

    def __init__(
        self,
        start_http: StartProcess,
        http_processes: int,
        start_worker: StartProcess,
        *,
        worker_board: WorkerBoard,
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
        self._worker_board = worker_board
        self._table = table
        self._recovery = recovery
        self._http_restarts = http_restarts
        self._worker_stall_s = worker_stall_s
        self._drain_delay_s = drain_delay_s
        self._drain_timeout_s = drain_timeout_s
        self._http: list[_Member] = []
        self._workers: list[_Member] = []
        self._given_up: list[_Member] = []
        self._awake_since = 0.0

    def start_http(self) -> None:
        """Start the HTTP processes, before the workers, so that probes are answered while the model loads."""
        self._http = [
            _Member(f"http-{number}", functools.partial(self._start_http, number), self._start_http(number))
            for number in range(self._http_processes)
        ]

    def start_workers(self) -> None:
        """Start the workers."""
        self._workers = [
            _Member(f"worker-{number}", functools.partial(self._start_worker, number), self._start_worker(number))
            for number in range(self._worker_board.workers)
        ]

    def watch(self, stop: socket) -> int:
        """Keep all processes alive until a signal, then drain.

        Args:
            stop: Has a byte to read for each signal received.

        Returns:
            The exit status: 0 after a signal, 1 after a crash loop.
        """
        try:
            while not self._wait(stop, _TICK_S):
                self._replace_dead_workers()
                self._replace_dead_http()
            self._drain(stop)
        except _WorkerCrashLoop as error:
            logger.error("%s; shutting down", error)
            self._give_up(stop)
            return 1
        except _HttpCrashLoop as error:
            logger.error("%s; shutting down", error)
            self._finish_requests(stop)
            return 1
        return 0

    def stop(self) -> bool:
        """End the remaining processes at once; return whether all of them ended."""
        left = ending.end([member.process for member in self._http], 0.0)
        left += ending.end([member.process for member in (*self._workers, *self._given_up)], _WORKER_STOP_S)
        for process in left:
            logger.critical("process %s does not end, although it was killed; it is left behind", process.pid)
        return not left

    def _wait(self, stop: socket, timeout_s: float) -> bool:
        """Wait until a process ends or the time is up; return whether a signal was received."""
        sentinels = [member.process.sentinel for member in (*self._http, *self._workers)]
        before = time.monotonic()
        ready = wait([stop, *sentinels], max(0.0, timeout_s))
        if time.monotonic() - before > timeout_s + _SUSPENDED_S:
            self._awake_since = time.monotonic()  # the workers may have been suspended as well
        if stop in ready:
            stop.recv(1)
        return stop in ready

    def _drain(self, stop: socket) -> None:
        """Turn readiness off, then have the HTTP processes finish; a second signal skips both."""
        logger.info("shutting down: readiness is off")
        self._worker_board.mark_draining()
        end = time.monotonic() + self._drain_delay_s
        while (left_s := end - time.monotonic()) > 0:
            if self._wait(stop, min(left_s, _TICK_S)):
                return
            self._replace_dead_workers()
            self._replace_dead_http()
        self._finish_requests(stop)

    def _finish_requests(self, stop: socket) -> None:
        """Close the port and wait until accepted requests are answered, another signal comes, or the time is up."""
        self._worker_board.mark_draining()
        for member in self._http:
            member.process.terminate()
        end = time.monotonic() + self._drain_timeout_s
        while self._http:
            if self._wait(stop, min(_TICK_S, end - time.monotonic())):
                logger.warning("stopping at once after another signal")
                return
            if time.monotonic() > end:
                logger.warning("requests were still in flight after %g s; stopping", self._drain_timeout_s)
                return
            self._http = [member for member in self._http if member.process.is_alive()]
            self._replace_dead_workers()

    def _replace_dead_http(self) -> None:
        for member in self._http:
            if member.process.is_alive():
                continue
            _log_end(member)
            if not member.may_restart():
                raise _HttpCrashLoop(f"{member.name} died more than {_MAX_RESTARTS} times in a minute")
            member.process = member.start()
            self._http_restarts.add()
            self._recovery.http_process_died()

    def _replace_dead_workers(self) -> None:
        for number, member in enumerate(self._workers):
            if member.process.is_alive() and self._hangs(number):
                logger.error("%s made no progress for %g s; killing it", member.name, self._worker_stall_s)
                if not ending.kill(member.process):
                    raise _WorkerCrashLoop(f"{member.name} did not end when it was killed: its driver hangs")
            if not member.process.is_alive():
                _log_end(member)
                self._restart_worker(number, member)

    def _restart_worker(self, number: int, member: _Member) -> None:
        state = self._worker_board.read(number).state
        if state == WorkerState.STARTING:
            raise _WorkerCrashLoop(f"{member.name} failed to start; the log above says why")
        held = self._table.held_by(number)
        if len(held) == 1 and self._table.is_isolated(held[0][0]):
            member.reset_restart_budget()  # the image caused these deaths and is not tried again
        elif not member.may_restart(worked=state == WorkerState.READY):
            raise _WorkerCrashLoop(f"{member.name} died more than {_MAX_RESTARTS} times in a minute")
        self._worker_board.mark_restarting(number)
        self._recovery.worker_died(number)
        member.process = member.start()

    def _hangs(self, number: int) -> bool:
        """Return whether a worker makes no progress; an idle one still sends a heartbeat every second."""
        if self._worker_board.read(number).state != WorkerState.READY:
            return False  # loading a model has no time limit
        last_s = max(self._worker_board.heartbeat_at(number), self._awake_since)
        return time.monotonic() - last_s > self._worker_stall_s + _HEARTBEAT_SLACK_S

    def _give_up(self, stop: socket) -> None:
        """Fail the waiting images, then have the HTTP processes end."""
        self._worker_board.mark_draining()
        self._worker_board.mark_gone()
        self._given_up, self._workers = self._workers, []
        for member in self._http:
            member.process.terminate()
        end = time.monotonic() + _LAST_ANSWERS_S
        while any(member.process.is_alive() for member in self._http) and time.monotonic() < end:
            self._recovery.give_up()  # repeatedly, since images may still be entering the queue
            self._http = [member for member in self._http if member.process.is_alive()]
            if self._wait(stop, _LAST_TICK_S):
                return


def _log_end(member: _Member) -> None:
    member.process.join()
    code = member.process.exitcode
    how = signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"
    logger.error("%s ended unexpectedly (%s)", member.name, how)
