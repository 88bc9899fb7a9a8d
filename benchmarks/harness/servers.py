"""Starts the servers to be measured, each in a process of its own on a free port, and stops them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import httpx

from benchmarks.harness import process_group
from benchmarks.harness.machine import ROOT

_START_S = 120.0
_STOP_S = 30.0
_MOST_XDIST_WORKERS = 8
_SETTLE_S = 10.0
_SETTLE_STEP_S = 0.2
_IDLE_SHARE = 0.4
"""Of a core: some servers poll their queues when they have nothing to do."""


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
        """Return the processor time that its processes used so far."""
        return process_group.cpu_seconds(self.group)

    def settle(self) -> None:
        """Wait until it has finished what clients left behind."""
        deadline = time.monotonic() + _SETTLE_S
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(_SETTLE_STEP_S)
            now = self.cpu_seconds()
            if now - before < _SETTLE_STEP_S * _IDLE_SHARE:
                break
            before = now

    def pause(self) -> None:
        """Stop all its processes until `resume`, so that it costs nothing meanwhile."""
        os.killpg(self.group, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        os.killpg(self.group, signal.SIGCONT)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Resume it as long as the context lasts, and until it has finished what clients left behind."""
        self.resume()
        yield
        self.settle()
        self.pause()

    def resident_bytes(self) -> int:
        """Return the memory that its processes have in use."""
        return sum(map(process_group.resident_bytes, process_group.living(self.group)))


def vit_api(**settings: object) -> AbstractContextManager[Server]:
    """Run our server with the embedded model."""
    return variant((str(ROOT / "server.py"),), settings)


@contextlib.contextmanager
def variant(program: Sequence[str], settings: Mapping[str, object]) -> Iterator[Server]:
    """Run a program that serves as ours does and takes our settings; `program` is what Python runs."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VIT_API_")}
    values = {"model": "digits", "host": "127.0.0.1", "port": port, "log_level": "warning", **settings}
    environment = inherited | {f"VIT_API_{name.upper()}": str(value) for name, value in values.items()}
    with _running([*program], port, "/health", environment) as server:
        yield server


@contextlib.contextmanager
def uvicorn(app: str, ready_path: str = "/") -> Iterator[Server]:
    """Run an ASGI application in one process, as fast as uvicorn can."""
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--no-access-log", "--log-level", "warning"]
    with _running(["-m", "uvicorn", app, *options], port, ready_path, dict(os.environ)) as server:
        yield server


@contextlib.contextmanager
def baseline(name: str, ready_path: str, model: str, **options: object) -> Iterator[Server]:
    """Run a module of `benchmarks.baselines` with our LitAPI: its arguments are the port, the model and options."""
    port = free_port()
    arguments = ["-m", f"benchmarks.baselines.{name}", str(port), model]
    for option, value in options.items():
        arguments += [f"--{option.replace('_', '-')}", str(value)]
    with _running(arguments, port, ready_path, dict(os.environ)) as server:
        yield server


@contextlib.contextmanager
def _running(arguments: list[str], port: int, ready_path: str, environment: dict[str, str]) -> Iterator[Server]:
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, start_new_session=True)
    server = Server(f"http://127.0.0.1:{port}", process.pid)
    try:
        _wait_until_ready(process, server.url + ready_path)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.resume()
        process.terminate()
        try:
            process.wait(_STOP_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server for {url} ended with status {process.returncode}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=10).status_code < 500:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the server for {url} did not start within {_START_S:g} s")


def free_port() -> int:
    """Return a port that nobody listens on, and that no other worker of pytest-xdist is given meanwhile."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port // 2 % _MOST_XDIST_WORKERS == worker % _MOST_XDIST_WORKERS:  # Linux gives odd ones, or even ones
            return port
