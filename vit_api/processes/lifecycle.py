"""The start and end of each kind of process: exit with the parent, logging, serving HTTP.

Knows nothing of the application that it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import litserve as ls
import uvicorn
from starlette.types import ASGIApp

from vit_api.environment import malloc
from vit_api.environment.garbage import exempt_from_collection
from vit_api.processes.signals import (
    FINISH,
    die_with_fork_server,
    die_with_parent,
    leave_signals_to_parent,
    name_process,
)

# mallopt(3). Each upload allocates and frees memory of its size several times. By default glibc returns it to the
# system and gets it again: in one process of four, a 65 KB upload cost 5 to 15 page faults. Blocks of long bodies and
# large pictures, for which page faults hardly count, are returned: each thread would keep those of its largest picture.
# The rest is returned once the process is idle.
_KEPT_BYTES = {malloc.TRIM_THRESHOLD: 64 * 2**20, malloc.TOP_PAD: 2**20, malloc.MMAP_THRESHOLD: 8 * 2**20}

# Requests free what they make by its reference counts. By default Python would look for cycles among the objects of all
# requests in flight every few of them, and among everything that is cached every few hundred.
_GARBAGE_THRESHOLDS = (20_000, 20, 50)

# A packet filter for a listener, socket(7), in classic BPF: drop packets with SYN and without ACK, keep the others.
# New connections get no answer and are refused when the client retries; established ones are not affected.
_SO_ATTACH_FILTER = 26
_DROP_NEW = (
    (0x30, 0, 0, 13),  # load the TCP header's flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # yes: keep 0 bytes of the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # no: keep all
)
_FILTER_CODE = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _DROP_NEW))
_FILTER = struct.pack("HL", len(_DROP_NEW), ctypes.addressof(_FILTER_CODE))
_NICENESS = 5
"""Of a worker on the CPU, see nice(2). When cores are short, decoding comes first: batches are larger then and are
interrupted less often, so that an image takes less CPU time. The worker keeps a quarter of a core that an HTTP process
wants as well, so that a flood of cheap requests can't stop it."""

_ACCEPT_S = 0.2
"""Time to accept the connections that the kernel has already established."""

_HEARTBEAT_S = 1.0
"""Interval of an HTTP process's heartbeats."""
_IDLE_S, _BUSY_REQUESTS = 60, 60
"""A process is idle if it has had fewer requests in so many seconds: probes, for example."""

_MIN_BACKLOG, _MAX_BACKLOG = 16, 2048
"""Number of connections that the kernel establishes ahead."""


class WorkerProcess(ls.Callback):  # type: ignore[misc]
    """LitServe's callback for a starting worker.

    Args:
        parent: Id of the process to end with; None: the fork server.
        configure_logging: Sets up the logging of a new process.
        shares_cores: Whether the model computes on the cores that the HTTP processes decode on.
    """

    def __init__(self, parent: int | None, configure_logging: Callable[[], None], *, shares_cores: bool) -> None:
        self._parent = parent
        self._configure_logging = configure_logging
        self._shares_cores = shares_cores

    def on_before_setup(self, *_: Any, **__: Any) -> None:
        """Prepare the process; LitServe calls this in it, before `LitAPI.setup`."""
        name_process("worker")
        signal.set_wakeup_fd(-1)  # a forked one inherits it from the parent, whose socket it would write to
        self._configure_logging()
        if self._parent is None:
            die_with_fork_server()
        else:
            die_with_parent(self._parent)
        leave_signals_to_parent()
        if self._shares_cores:
            os.nice(_NICENESS)


def keep_freed_memory() -> None:
    """Let glibc keep some freed memory for the next upload; without effect on other C libraries."""
    malloc.set_options(_KEPT_BYTES)


class FreedMemory:
    """Returns what glibc keeps of freed memory to the system, once a process that was busy is idle."""

    def __init__(self) -> None:
        self._checks = 0
        self._requests = 0
        self._was_busy = False

    def check(self, requests: int) -> None:
        """Return it if it is time; to be called every second, with the number of requests until now."""
        self._checks += 1
        if self._checks % _IDLE_S:
            return
        is_busy = requests - self._requests >= _BUSY_REQUESTS
        if self._was_busy and not is_busy:
            malloc.trim()
        self._requests, self._was_busy = requests, is_busy


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard one; the usual 1024 is for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve_http(
    app: ASGIApp,
    protocol: Callable[..., asyncio.Protocol],
    listener: socket.socket,
    *,
    parent: int,
    heartbeat: Callable[[], None],
    on_listening: Callable[[], None],
    stop_timeout_s: float,
    keeps_application: bool = True,
) -> None:
    """Serve an application until the signal `FINISH`, then finish the requests in flight. For a forked process.

    Args:
        app: The ASGI application.
        protocol: Makes uvicorn's protocol for each connection.
        listener: A bound socket.
        parent: Id of the process to end with.
        heartbeat: Called every second for as long as the event loop runs.
        on_listening: Called once connections are accepted.
        stop_timeout_s: Seconds that requests in flight get to finish.
        keeps_application: Whether nothing of the application is replaced while the process runs.
    """
    signal.set_wakeup_fd(-1)  # inherited from the parent, whose socket it would write to
    leave_signals_to_parent()
    die_with_parent(parent)
    keep_freed_memory()
    if keeps_application:
        exempt_from_collection()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # access.client_address decides which are trusted
        # All that the kernel has established are accepted at once, and each takes a descriptor.
        backlog=max(_MIN_BACKLOG, min(_MAX_BACKLOG, soft // 8)),
        timeout_graceful_shutdown=max(1, round(stop_timeout_s)),
    )
    _Server(config, heartbeat, on_listening).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A uvicorn server that sends heartbeats, and loses no connection when it shuts down.

    Otherwise connections that the kernel has established and uvicorn not yet accepted are reset with the listener.

    Args:
        config: uvicorn's configuration.
        heartbeat: Called every second, from the start of the event loop to its end.
        on_listening: Called once connections are accepted.
    """

    def __init__(self, config: uvicorn.Config, heartbeat: Callable[[], None], on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._heartbeat = heartbeat
        self._on_listening = on_listening
        self._freed_memory = FreedMemory()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Finish on the signal `FINISH`, and not on those of uvicorn, which are the main process's."""
        signal.signal(FINISH, self.handle_exit)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [FINISH])
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        if self.started:
            self._on_listening()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal, then shut down."""
        heartbeats = asyncio.create_task(self._send_heartbeats())
        try:
            await super().serve(sockets)
        finally:
            heartbeats.cancel()

    async def _send_heartbeats(self) -> None:
        while True:
            self._heartbeat()
            self._freed_memory.check(self.server_state.total_requests)
            await asyncio.sleep(_HEARTBEAT_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new connections, accept the established ones, then shut down as uvicorn does."""
        for listener in sockets or ():
            with contextlib.suppress(OSError):  # not on Linux
                listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _FILTER)
        await asyncio.sleep(_ACCEPT_S)
        await super().shutdown(sockets)
