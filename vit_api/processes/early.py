"""A process that answers on the port while the server starts, until the HTTP processes accept connections themselves.

It accepts on their sockets, so that no connection is refused or reset when they take over: what it has not accepted
waits in the kernel's queue for them. It is forked before any large package is imported, and a main process that is busy
with a download or a long import does not delay it. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import mmap
import multiprocessing as mp
import os
import socket
from collections.abc import Awaitable, Callable
from multiprocessing.process import BaseProcess

from vit_api.processes import ending
from vit_api.processes.listeners import Listeners
from vit_api.processes.signals import STOP_SIGNALS, blocked, die_with_parent

_BACKLOG = 1024
_MAX_OPEN = 256
"""Connections at a time; further ones wait in the kernel's queue."""
_LAST_S = 15.0
"""Time for open connections to be answered once the HTTP processes have taken over."""
_FIRST_PHASE = 128
"""Messages below it are numbers of HTTP processes."""


class Phase(enum.IntEnum):
    """What a starting server does, in this order."""

    PREPARING = 0
    FETCHING = 1
    """Finding the model, or downloading it."""
    LOADING = 2


Answer = Callable[[socket.socket, Phase], Awaitable[None]]


class EarlyAnswers:
    """Answer on the listeners of the HTTP processes until those take over.

    Args:
        listeners: The sockets.
        answer: Answers one connection, given the current phase. The connection is closed afterwards.
    """

    def __init__(self, listeners: Listeners, answer: Answer) -> None:
        self._listeners = listeners
        self._answer = answer
        self._reader, self._writer = os.pipe()
        self._process: BaseProcess | None = None
        self._over = mmap.mmap(-1, 1)  # shared with all processes that are forked from now on

    def start(self) -> None:
        """Start the process; connections are accepted from now on."""
        for listener in self._listeners.all().values():
            listener.listen(_BACKLOG)
        process = mp.get_context("fork").Process(target=self._run, args=(os.getpid(),), name="early", daemon=True)
        with blocked(*STOP_SIGNALS):  # for good: it ends with the main process
            process.start()
        self._process = process

    def __enter__(self) -> EarlyAnswers:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def is_over(self) -> bool:
        """Return whether the HTTP processes have taken over all sockets. For every process."""
        return self._over[0] != 0

    def enter(self, phase: Phase) -> None:
        """Say what the server does from now on."""
        self._send(_FIRST_PHASE + phase)

    def hand_over(self, number: int) -> None:
        """Accept no further connections on one of the sockets. For its HTTP process, which now accepts them."""
        self._send(number)

    def reap(self) -> None:
        """Let the system forget the process if it has ended."""
        if self._process is not None and not ending.is_running(self._process):
            self._process = None
            self._set_over()

    def end(self) -> None:
        """End the process at once."""
        if self._process is not None:
            ending.end([self._process])

    def _send(self, message: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, since all have taken over
            os.write(self._writer, bytes([message]))

    def _run(self, parent: int) -> None:
        die_with_parent(parent)
        os.close(self._writer)
        asyncio.run(_Acceptor(self._listeners.all(), self._answer, self._set_over).run(self._reader))

    def _set_over(self) -> None:
        self._over[0] = 1


class _Acceptor:
    """Accepts connections and has them answered.

    Args:
        listeners: The sockets, by the number of the HTTP process.
        answer: Answers one connection.
        on_over: Called when the HTTP processes have taken over all sockets.
    """

    def __init__(self, listeners: dict[int, socket.socket], answer: Answer, on_over: Callable[[], None]) -> None:
        self._listeners = dict(listeners)
        self._answer = answer
        self._on_over = on_over
        self._phase = Phase.PREPARING
        self._open: set[asyncio.Task[None]] = set()
        self._taken_over = asyncio.Event()

    async def run(self, messages: int) -> None:
        """Answer until the HTTP processes have taken over all sockets, then finish the open connections."""
        loop = asyncio.get_running_loop()
        os.set_blocking(messages, False)
        loop.add_reader(messages, self._read, messages)
        for listener in self._listeners.values():
            listener.setblocking(False)
        self._resume()
        await self._taken_over.wait()
        self._on_over()
        if self._open:
            await asyncio.wait(self._open, timeout=_LAST_S)

    def _read(self, messages: int) -> None:
        for message in os.read(messages, 4096):
            if message >= _FIRST_PHASE:
                self._phase = Phase(message - _FIRST_PHASE)
            elif (listener := self._listeners.pop(message, None)) is not None:
                asyncio.get_running_loop().remove_reader(listener)
                listener.close()
        if not self._listeners:
            self._taken_over.set()

    def _resume(self) -> None:
        for listener in self._listeners.values():
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _pause(self) -> None:
        for listener in self._listeners.values():
            asyncio.get_running_loop().remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # an HTTP process was faster, or the client is gone
            return
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._open.add(task)
        task.add_done_callback(self._closed)
        if len(self._open) >= _MAX_OPEN:
            self._pause()

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        self._resume()

    async def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, TimeoutError):  # the client is gone, or too slow
            await self._answer(connection, self._phase)
