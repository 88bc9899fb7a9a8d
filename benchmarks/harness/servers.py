"""Starts and stops servers on free ports, each in its own process group, for benchmarks and tests.

Knows nothing of what they are sent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness import process_group
from benchmarks.harness.machine import ROOT

PLAIN_HTTP: dict[str, Any] = {"verify": False}
"""Options for httpx, which would otherwise load the system's certificates at each call; nothing here uses TLS."""

_START_S = 120.0
_STOP_S = 60.0
_POLL_S = 0.1
"""Each poll costs the server and this process milliseconds, and a server takes seconds to start."""
_MAX_XDIST_WORKERS = 8
_SETTLE_S = 10.0
_SETTLE_STEP_S = 0.2
_IDLE_SHARE = 0.4
"""The share of a core below which a server is idle; some servers poll their queues."""


@dataclass(frozen=True)
class Server:
    """A server under load.

    Attributes:
        url: Its base address.
        group: The process group of all its processes.
    """

    url: str
    group: int

    def cpu_seconds(self) -> float:
        """Return the CPU time of its processes, including those that have exited."""
        return process_group.cpu_seconds(self.group)

    def settle(self) -> None:
        """Wait until it has finished the requests that clients left behind, or for some seconds."""
        deadline = time.monotonic() + _SETTLE_S
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(_SETTLE_STEP_S)
            now = self.cpu_seconds()
            if now - before < _SETTLE_STEP_S * _IDLE_SHARE:
                break
            before = now

    def pause(self) -> None:
        """Stop all its processes until `resume`, so that it takes no CPU time."""
        os.killpg(self.group, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        os.killpg(self.group, signal.SIGCONT)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Resume it until the context ends and the requests left behind are finished."""
        self.resume()
        yield
        self.settle()
        self.pause()

    def resident_bytes(self) -> int:
        """Return the resident memory of its processes."""
        return sum(map(process_group.resident_bytes, process_group.living(self.group)))


def vit_api(**settings: object) -> AbstractContextManager[Server]:
    """Run our server, by default with the embedded model."""
    return variant((str(ROOT / "server.py"),), settings)


@contextlib.contextmanager
def variant(program: Sequence[str], settings: Mapping[str, object]) -> Iterator[Server]:
    """Run a Python program that serves like ours and takes our settings."""
    port = free_port()
    values = {"model": "digits", "host": "127.0.0.1", "port": port, "log_level": "warning", **settings}
    with _python(program, port, "/health", environment_with(**values)) as server:
        yield server


@contextlib.contextmanager
def uvicorn(app: str, ready_path: str) -> Iterator[Server]:
    """Run an ASGI application in one process, as fast as uvicorn can."""
    port = free_port()
    options = ("--host", "127.0.0.1", "--port", str(port), "--no-access-log", "--log-level", "warning")
    with _python(("-m", "uvicorn", app, *options), port, ready_path) as server:
        yield server


@contextlib.contextmanager
def module(name: str, ready_path: str) -> Iterator[Server]:
    """Run a Python module that serves; its argument is the port."""
    port = free_port()
    with _python(("-m", name, str(port)), port, ready_path) as server:
        yield server


@contextlib.contextmanager
def baseline(name: str, ready_path: str, model: str, **options: object) -> Iterator[Server]:
    """Run a module of `benchmarks.baselines` with our LitAPI; its arguments are the port, the model and options."""
    port = free_port()
    arguments = ["-m", f"benchmarks.baselines.{name}", str(port), model]
    for option, value in options.items():
        arguments += [f"--{option.replace('_', '-')}", str(value)]
    with _python(arguments, port, ready_path) as server:
        yield server


@contextlib.contextmanager
def _python(
    arguments: Sequence[str], port: int, ready_path: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    url = f"http://127.0.0.1:{port}"
    with running([sys.executable, *arguments], url + ready_path, environment=environment) as process:
        yield Server(url, process.pid)


@contextlib.contextmanager
def running(
    command: Sequence[str],
    ready_url: str,
    *,
    cwd: str | Path = ROOT,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    start_s: float = _START_S,
    stop_s: float = _STOP_S,
    must_stop: bool = True,
    start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a new process group, from its readiness until the context ends.

    Args:
        command: The command to run.
        ready_url: The URL that returns 200 as soon as the server is ready.
        cwd: The working directory.
        environment: All environment variables (default: this process's).
        log: The file for its output (default: this process's output).
        start_s: The timeout of its start.
        stop_s: The timeout of its stop.
        must_stop: Whether it is an error if it does not stop in time; it is killed in any case.
        start: Starts the process, with the arguments of `subprocess.Popen`.

    Raises:
        RuntimeError: It ended early, or did not become ready in time.
        subprocess.TimeoutExpired: It did not stop in time, and must.
    """
    with contextlib.ExitStack() as stack:
        with (
            _termination_held_back(),
            contextlib.nullcontext() if log is None else log.open("wb") as output,
        ):
            process = start(command, cwd=cwd, env=environment, stdout=output, stderr=output, start_new_session=True)
            stack.callback(stop if must_stop else _stop_or_kill, process, stop_s)
        wait_until_ready(process, ready_url, log, start_s)
        yield process


@contextlib.contextmanager
def _termination_held_back() -> Iterator[None]:
    """Handle a SIGTERM after the context: while a process is being started, nothing is there that would stop it.

    Only the main thread handles signals, so in others nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handler = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
    for number in received:
        signal.raise_signal(number)


def wait_until_ready(
    process: subprocess.Popen[bytes], url: str, log: Path | None = None, timeout_s: float = _START_S
) -> None:
    """Poll a URL until it answers 200.

    Raises:
        RuntimeError: The process ended, or did not become ready in time; the message has its log.
    """
    deadline = time.monotonic() + timeout_s
    # One client: to make one takes longer than to ask.
    with httpx.Client(timeout=10, **PLAIN_HTTP) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"The server for {url} ended with status {process.returncode}.{_shown(log)}")
            with contextlib.suppress(httpx.TransportError):
                if client.get(url).status_code == httpx.codes.OK:
                    return
            time.sleep(_POLL_S)
    raise RuntimeError(f"The server for {url} was not ready within {timeout_s:g} s.{_shown(log)}")


def _shown(log: Path | None) -> str:
    return "" if log is None else f" Its log:\n{log.read_text(errors='replace')}"


def stop(process: subprocess.Popen[bytes], timeout_s: float = _STOP_S) -> None:
    """Stop a server as an operator would, and kill what is left of its process group.

    Raises:
        subprocess.TimeoutExpired: It did not stop in time; its processes were killed.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGCONT)  # a paused process would not handle the next signal
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _stop_or_kill(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        stop(process, timeout_s)


def environment_with(**settings: object) -> dict[str, str]:
    """Return this process's environment without settings of our server, and with these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VIT_API_")}
    return inherited | {f"VIT_API_{name.upper()}": str(value) for name, value in settings.items()}


def free_port() -> int:
    """Return a port that nothing listens on, and that no other worker of pytest-xdist is given meanwhile."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port // 2 % _MAX_XDIST_WORKERS == worker % _MAX_XDIST_WORKERS:  # Linux assigns odd or even ones
            return port
