"""Keeps the server's processes alive and stops them. For the main process.

Starts the HTTP processes and the workers, restarts those that die or hang, and shuts down on a signal. Knows nothing of
LitServe, HTTP or models; `recovery` takes care of a dead worker's images.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from socket import socket
from typing import Any

from vit_api.ipc.http_board import HttpBoard
from vit_api.ipc.metrics_board import Counter
from vit_api.ipc.slots import MAX_DEATHS, SlotTable
from vit_api.ipc.worker_board import WorkerBoard, WorkerState
from vit_api.processes import ending
from vit_api.processes.member import MAX_RESTARTS, Member
from vit_api.processes.recovery import Recovery

logger = logging.getLogger(__name__)

_TICK_S = 0.5
"""Interval between two checks for hung processes."""
_MAX_STEP_S = 2 * _TICK_S
"""The most that the time between two checks counts for: if it is longer, this process was suspended or starved, too."""

_LAST_ANSWERS_S = 5.0
"""Time for HTTP processes to answer waiting requests once the workers are gone."""
_LAST_TICK_S = 0.05
_HEARTBEAT_SLACK_S = 1.0
"""Maximum age of an idle worker's heartbeat."""
_HTTP_STALL_S = 8.0
"""Seconds without a heartbeat after which an HTTP process is killed. Its event loop is never blocked for so long: the
longest call that was observed in a decoder took 1.1 s."""
_HTTP_START_S = 60.0
"""The same, until the first heartbeat."""


class _WorkerCrashLoop(Exception):
    """A worker can't be kept alive."""


class _HttpCrashLoop(Exception):
    """An HTTP process can't be kept alive."""


class _DriverHangs(_WorkerCrashLoop):
    """A worker does not even end when it is killed."""


StartProcess = Callable[[int], BaseProcess]


@dataclass
class WorkerGroup:
    """The workers that run one model.

    Attributes:
        start: Starts the worker with a given number.
        board: The status of the workers, and their number.
        table: The images that wait for them.
        recovery: Takes care of a dead worker's images.
        names: The workers' names in the log.
        title: What they run, in the log; empty if there is no other group.
        members: The processes.
        has_failed: Whether they can't be kept alive.
        problem: Why not, a phrase.
        is_on_trial: Whether they are started while the server runs; if they fail, nothing else is affected.
    """

    start: StartProcess
    board: WorkerBoard
    table: SlotTable
    recovery: Recovery
    names: Sequence[str]
    title: str = ""
    members: list[Member] = field(default_factory=list)
    has_failed: bool = False
    problem: str = ""
    is_on_trial: bool = False

    def start_all(self) -> None:
        """Start the workers."""
        self.members = [
            Member(name, functools.partial(self.start, number), self.start(number))
            for number, name in enumerate(self.names)
        ]


class Supervisor:
    """Keep HTTP processes and workers alive until a signal.

    A group of workers that can't be kept alive is given up, and the others continue; with the last group the server
    ends.

    Args:
        start_http: Starts the HTTP process with a given number.
        http_processes: Number of HTTP processes.
        groups: The workers.
        http_board: The heartbeats of the HTTP processes.
        http_restarts: Counts restarted HTTP processes.
        worker_stall_s: Seconds without progress after which a worker is killed.
        drain_delay_s: Seconds from the first signal, when readiness turns off, until the port is closed.
        drain_timeout_s: Seconds that requests in flight get to finish.
        on_tick: Called at every check, at least every half second.
        waits_for: Returns what ends a wait for the next check when it can be read.
    """

    def __init__(
        self,
        start_http: StartProcess,
        http_processes: int,
        groups: Sequence[WorkerGroup],
        *,
        http_board: HttpBoard,
        http_restarts: Counter,
        worker_stall_s: float,
        drain_delay_s: float,
        drain_timeout_s: float,
        on_tick: Callable[[], None] = lambda: None,
        waits_for: Callable[[], Sequence[Any]] = tuple,
    ) -> None:
        self._start_http = start_http
        self._http_processes = http_processes
        self._groups = list(groups)
        self._waits_for = waits_for
        self._http_board = http_board
        self._http_restarts = http_restarts
        self._worker_stall_s = worker_stall_s
        self._drain_delay_s = drain_delay_s
        self._drain_timeout_s = drain_timeout_s
        self._on_tick = on_tick
        self._http: list[Member] = []
        self._is_draining = False
        self._checked_at = time.monotonic()

    def start_http(self) -> None:
        """Start the HTTP processes, before the workers, so that probes are answered while the model loads."""
        self._http = [
            Member(f"http-{number}", functools.partial(self._start, number), self._start(number))
            for number in range(self._http_processes)
        ]

    def _start(self, number: int) -> BaseProcess:
        self._http_board.mark_starting(number)
        return self._start_http(number)

    def start_workers(self) -> None:
        """Start the workers."""
        for group in self._groups:
            group.start_all()

    def add(self, group: WorkerGroup) -> None:
        """Start the workers of a further group, and keep them alive."""
        if self._is_draining:
            group.board.mark_draining()
        group.start_all()
        self._groups.append(group)

    def remove(self, group: WorkerGroup) -> None:
        """End the workers of a group, whose images are all answered.

        Raises:
            _DriverHangs: One of them can't be killed.
        """
        self._groups.remove(group)
        if ending.end(member.process for member in group.members):
            raise _DriverHangs(f"a worker of {group.title} did not end when it was killed: its driver hangs")

    def watch(self, stop: socket) -> int:
        """Keep all processes alive until a signal, then drain.

        Args:
            stop: Has a byte to read for each signal received, its number. SIGHUP is passed on to the HTTP processes.

        Returns:
            The exit status: 0 after a signal, 1 after a crash loop.
        """
        try:
            while not self._wait(stop, _TICK_S):
                self._check()
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
        workers = [member for group in self._groups for member in group.members]
        left = ending.end(member.process for member in (*self._http, *workers))
        for process in left:
            logger.critical("process %s does not end, although it was killed; it is left behind", process.pid)
        return not left

    def _wait(self, stop: socket, timeout_s: float) -> bool:
        """Wait until a process ends or the time is up; return whether a signal to stop was received."""
        self._on_tick()  # also while draining, and at once when that begins
        workers = [member for group in self._groups if not group.has_failed for member in group.members]
        sentinels = [member.process.sentinel for member in (*self._http, *workers)]
        if stop not in wait([stop, *sentinels, *self._waits_for()], max(0.0, timeout_s)):
            return False
        if stop.recv(1)[0] != signal.SIGHUP:
            return True
        self._pass_hangup()
        return False

    def _pass_hangup(self) -> None:
        """Have the HTTP processes reopen their log files."""
        for member in self._http:
            if ending.is_running(member.process) and member.process.pid is not None:
                os.kill(member.process.pid, signal.SIGHUP)

    def _drain(self, stop: socket) -> None:
        """Turn readiness off, then have the HTTP processes finish; a second signal skips both."""
        logger.info("shutting down: readiness is off")
        self._mark_draining()
        end = time.monotonic() + self._drain_delay_s
        while (left_s := end - time.monotonic()) > 0:
            if self._wait(stop, min(left_s, _TICK_S)):
                return
            self._check()
        self._finish_requests(stop)

    def _finish_requests(self, stop: socket) -> None:
        """Close the port and wait until accepted requests are answered, another signal comes, or the time is up."""
        self._mark_draining()
        for member in self._http:
            ending.request_finish(member.process)
        end = time.monotonic() + self._drain_timeout_s
        while self._http:
            if self._wait(stop, min(_TICK_S, end - time.monotonic())):
                logger.warning("stopping at once after another signal")
                return
            if time.monotonic() > end:
                logger.warning("requests were still in flight after %g s; stopping", self._drain_timeout_s)
                return
            awake_s = self._awake_s()
            for number, member in enumerate(self._http):
                self._kill_if_hung(number, member, awake_s)
            self._http = [member for member in self._http if ending.is_running(member.process)]
            self._replace_dead_workers(awake_s)

    def _mark_draining(self) -> None:
        self._is_draining = True
        for group in self._groups:
            group.board.mark_draining()

    def _check(self) -> None:
        """Replace what has ended or hangs."""
        awake_s = self._awake_s()
        self._replace_dead_workers(awake_s)
        self._replace_dead_http(awake_s)

    def _awake_s(self) -> float:
        """Return how long this process was awake since the last check."""
        before, self._checked_at = self._checked_at, time.monotonic()
        return min(self._checked_at - before, _MAX_STEP_S)

    def _replace_dead_http(self, awake_s: float) -> None:
        for number, member in enumerate(self._http):
            if not self._kill_if_hung(number, member, awake_s):
                raise _HttpCrashLoop(f"{member.name} did not end when it was killed: the system hangs")
            if ending.is_running(member.process):
                continue
            member.log_end()
            if not member.may_restart():
                raise _HttpCrashLoop(f"{member.name} died more than {MAX_RESTARTS} times in a minute")
            member.restart()
            self._http_restarts.add()
            for group in self._groups:
                group.recovery.http_process_died()

    def _kill_if_hung(self, number: int, member: Member, awake_s: float) -> bool:
        """Kill an HTTP process that sends no heartbeats; return False if it does not end."""
        heartbeat_at = self._http_board.heartbeat_at(number)
        limit_s = _HTTP_STALL_S if heartbeat_at else _HTTP_START_S
        if not ending.is_running(member.process) or member.silence.observe(heartbeat_at, awake_s) <= limit_s:
            return True
        logger.error("%s made no progress for %g s; killing it", member.name, limit_s)
        return ending.kill(member.process)

    def _replace_dead_workers(self, awake_s: float) -> None:
        for group in self._groups:
            if group.has_failed:
                group.recovery.give_up()  # repeatedly, since images that were being decoded enter the queue later
                continue
            try:
                self._replace_dead_workers_of(group, awake_s)
            except _DriverHangs:
                raise
            except _WorkerCrashLoop as error:
                self._give_up_group(group, error)

    def _give_up_group(self, group: WorkerGroup, error: _WorkerCrashLoop) -> None:
        """Fail the images of a group, and those to come.

        Raises:
            _WorkerCrashLoop: It was the last group.
            _DriverHangs: A worker of it can't be killed, and may still write to its slots.
        """
        group.problem = str(error)
        if not group.is_on_trial and all(other.has_failed for other in self._groups if other is not group):
            raise error
        if group.is_on_trial:
            logger.error("%s; %s can't be loaded", error, group.title)
        else:
            logger.error("%s; %s is no longer served, the other models are", error, group.title)
        group.has_failed = True
        group.board.mark_gone()
        left = ending.end(member.process for member in group.members)
        if left:
            raise _DriverHangs(f"a worker of {group.title} did not end when it was killed: its driver hangs")
        group.recovery.give_up()

    def _replace_dead_workers_of(self, group: WorkerGroup, awake_s: float) -> None:
        for number, member in enumerate(group.members):
            if ending.is_running(member.process) and self._hangs(group, number, awake_s):
                logger.error("%s made no progress for %g s; killing it", member.name, self._worker_stall_s)
                if not ending.kill(member.process):
                    raise _DriverHangs(f"{member.name} did not end when it was killed: its driver hangs")
            if not ending.is_running(member.process):
                member.log_end()
                self._restart_worker(group, number)

    def _restart_worker(self, group: WorkerGroup, number: int) -> None:
        member = group.members[number]
        state = group.board.read(number).state
        if state == WorkerState.STARTING:
            raise _WorkerCrashLoop(f"{member.name} failed to start; the log above says why")
        held = group.table.held_by(number)
        if len(held) == 1 and group.table.is_isolated(held[0][0]):
            member.reset_restart_budget(MAX_DEATHS)  # the image caused these deaths and is not tried again
        elif not member.may_restart(worked=state == WorkerState.READY):
            raise _WorkerCrashLoop(f"{member.name} died more than {MAX_RESTARTS} times in a minute")
        group.board.mark_restarting(number)
        group.recovery.worker_died(number)
        member.restart()

    def _hangs(self, group: WorkerGroup, number: int, awake_s: float) -> bool:
        """Return whether a worker makes no progress; an idle one still sends a heartbeat every second."""
        if group.board.read(number).state != WorkerState.READY:
            return False  # loading a model has no time limit
        silent_s = group.members[number].silence.observe(group.board.heartbeat_at(number), awake_s)
        return silent_s > self._worker_stall_s + _HEARTBEAT_SLACK_S

    def _give_up(self, stop: socket) -> None:
        """Fail the waiting images, then have the HTTP processes end."""
        self._mark_draining()
        for group in self._groups:
            group.board.mark_gone()
            group.has_failed = True
        for member in self._http:
            ending.request_finish(member.process)
        end = time.monotonic() + _LAST_ANSWERS_S
        while any(ending.is_running(member.process) for member in self._http) and time.monotonic() < end:
            for group in self._groups:
                group.recovery.give_up()  # repeatedly, since images may still be entering the queue
            self._http = [member for member in self._http if ending.is_running(member.process)]
            if self._wait(stop, _LAST_TICK_S):
                return
