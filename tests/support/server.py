"""Starts and stops real servers for tests, on free ports."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness import servers
from benchmarks.harness.process_group import kinds
from benchmarks.harness.servers import free_port
from tests.support import forked_servers

ROOT = Path(__file__).resolve().parents[2]
PLAIN_HTTP = servers.PLAIN_HTTP
environment = servers.environment_with
TRANSFORMERS = ("vit_api.model.transformers_network",)
"""For `serve`: what a model that is not a plain ViT needs; importing it takes longer than all else of a start."""
_ALL_FRESH = "FRESH_SERVERS" in os.environ
"""Whether each server gets a new interpreter, as in production; see `serve`."""


@dataclass
class RunningServer:
    """A server under test.

    Attributes:
        url: Its base address.
        process: Its main process.
        log: The file with its output.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> httpx.Response:
        """GET a path."""
        return httpx.get(self.url + path, timeout=30, **PLAIN_HTTP)

    def predict(self, upload: bytes, path: str = "/predict", **options: Any) -> httpx.Response:
        """POST an upload as the raw body."""
        return httpx.post(self.url + path, content=upload, timeout=60, **PLAIN_HTTP, **options)

    def top(self, upload: bytes, k: int = 5) -> list[tuple[str, float]]:
        """Return the top labels and probabilities for an upload."""
        response = self.predict(upload, f"/predict?top_k={k}")
        assert response.status_code == 200, response.text
        return [(item["label"], item["confidence"]) for item in response.json()["predictions"]]


@contextlib.contextmanager
def serve(
    model: str | Path = "digits",
    *,
    program: Sequence[str] = ("server.py",),
    is_fresh: bool = False,
    imports: tuple[str, ...] = (),
    **settings: object,
) -> Iterator[RunningServer]:
    """Run a server until the context ends. It is ready when the context begins, and must exit cleanly.

    Args:
        model: The model.
        program: The program and its arguments.
        is_fresh: Whether a new interpreter runs it; otherwise it is forked from one with all imports, which takes a
            fifth of the CPU time.
        imports: Further modules that the one that it is forked from has imported.
        settings: The server's settings.
    """
    is_fresh = is_fresh or _ALL_FRESH
    command = [sys.executable, *(str(ROOT / part) if part.endswith(".py") else part for part in program)]
    with (
        tempfile.TemporaryDirectory() as folder,
        _running(
            command,
            folder,
            {"PYTHONPATH": str(ROOT)},
            {"model": model, "host": "127.0.0.1", **settings},
            subprocess.Popen if is_fresh else functools.partial(forked_servers.start, imports=imports),
        ) as server,
    ):
        # The process that answers during the start may still be about to end.
        expected = int(str(settings.get("api_servers", 2) or os.cpu_count()))
        wait_until(lambda: len(http_processes_of(server)) <= expected)
        yield server


@contextlib.contextmanager
def serve_by(
    command: Sequence[str],
    where: str | Path,
    variables: Mapping[str, str],
    *,
    is_fresh: bool = False,
    **settings: object,
) -> Iterator[RunningServer]:
    """Run a server with any command, like `serve`.

    Args:
        command: Starts a server that reads its settings from the environment.
        where: The working directory.
        variables: Further environment variables.
        is_fresh: Whether a new interpreter runs it, also where the command is that of a server that can be forked.
        settings: The server's settings.
    """
    start = subprocess.Popen if is_fresh or _ALL_FRESH else forked_servers.start
    with _running(command, where, variables, settings, start) as server:
        yield server


@contextlib.contextmanager
def _running(
    command: Sequence[str],
    where: str | Path,
    variables: Mapping[str, str],
    settings: Mapping[str, object],
    start: Callable[..., subprocess.Popen[bytes]],
) -> Iterator[RunningServer]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    defaults = {"port": port, "api_servers": 2, "cpu_threads": 1}
    variables = {**environment(**(defaults | settings)), **variables}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with servers.running(
            command, url + "/health", cwd=where, environment=variables, log=log, start=start
        ) as process:
            yield RunningServer(url, process, log)


def wait_until_ready(server: RunningServer) -> None:
    """Poll the server's health until it is ready."""
    servers.wait_until_ready(server.process, server.url + "/health", server.log)


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Poll a condition to a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition is still false after {timeout_s} s"
        time.sleep(0.05)


def worker_of(server: RunningServer) -> int:
    """Return the process id of the server's only inference worker."""
    found = workers_of(server)
    assert len(found) == 1
    return found[0]


def workers_of(server: RunningServer) -> list[int]:
    """Return the process ids of the server's inference workers."""
    return sorted(pid for pid, kind in kinds(server.process.pid).items() if kind == "worker")


def kill_until_given_up(server: RunningServer, kept: int, timeout_s: float) -> set[int]:
    """Kill each worker but one, and each successor, until the server gives up their version; return what was killed."""
    dead: set[int] = set()

    def is_given_up() -> bool:
        for pid in set(workers_of(server)) - dead - {kept}:
            os.kill(pid, signal.SIGKILL)
            dead.add(pid)
        return "is no longer served" in server.log.read_text()

    wait_until(is_given_up, timeout_s)
    return dead


def http_processes_of(server: RunningServer) -> list[int]:
    """Return the process ids of the server's HTTP processes."""
    return sorted(pid for pid, kind in kinds(server.process.pid).items() if kind == "http")


@contextlib.contextmanager
def paused(pid: int) -> Iterator[None]:
    """Suspend a process until the context ends, unless it is killed before."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
