"""What signals do in each kind of process, and the exit with the parent.

A signal may reach all processes at once: Ctrl-C in a terminal, or systemd's stop of a service. Only the main process
acts on it, and ends the others in order. Imports little: it is used in the first milliseconds of a server.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from multiprocessing import parent_process
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""They ask a server to stop."""

FINISH = signal.SIGUSR1
"""The main process sends it to an HTTP process, which then closes the port and finishes the requests in flight. Not
SIGTERM, which may reach the whole process group before the main process has turned readiness off."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the process with the id `parent` exits; see prctl(2)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def die_with_fork_server() -> None:
    """Let the kernel kill this process when its parent exits, multiprocessing's fork server, or the main process.

    The fork server outlives the main process while one of its children lives. So the kernel also sends SIGKILL, in
    place of SIGIO, once the pipe is closed whose other end the main process holds; see fcntl(2).
    """
    die_with_parent(os.getppid())
    main = parent_process()
    assert main is not None
    pipe = main.sentinel
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if not main.is_alive():  # it ended before that
        os._exit(1)


def name_process(name: str) -> None:
    """Set the name that `ps -o comm` and `top` show for this process; forked ones have the same command line."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())


def exit_on_signals() -> None:
    """Let SIGINT and SIGTERM end this process at once, with status 0: for the start, until `stop_signals`.

    The first process of a container has no default actions, so that without a handler these signals had no effect.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    for number in STOP_SIGNALS:
        signal.signal(number, leave)


def leave_signals_to_parent() -> None:
    """Let SIGINT and SIGTERM have no effect on this process, which the main process kills.

    Handlers that do nothing, since a process started here would inherit signals that are ignored or blocked.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _do_nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def ignore_hangups() -> None:
    """Let SIGHUP, which asks to reopen log files, have no effect: for the start, before they are opened."""
    signal.signal(signal.SIGHUP, _do_nothing)


def _do_nothing(*_: Any) -> None: ...


@contextlib.contextmanager
def stop_signals(*others: signal.Signals) -> Iterator[socket.socket]:
    """Turn SIGINT, SIGTERM and others into bytes on the socket that this yields, for the duration of the context.

    Each byte is the number of the signal.
    """
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    previous_fd = signal.set_wakeup_fd(writer.fileno())
    previous = {number: signal.signal(number, _do_nothing) for number in (*STOP_SIGNALS, *others)}
    try:
        yield reader
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_fd)
        reader.close()
        writer.close()


@contextlib.contextmanager
def blocked(*signals: signal.Signals) -> Iterator[None]:
    """Block signals; a process started here has them blocked until it unblocks them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
