"""Starts, checks and stops our server as a child process. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import aiohttp

_HOST = "127.0.0.1"
_POLL_S = 0.1
_CHECK_S = 5.0
_RUN_CHILD = Path(__file__).with_name("run_child.py")
_SERVER = Path(__file__).parents[2] / "server.py"
_SLOTS = re.compile(r'^inference_slots\{state="(\w+)"\} (\S+)$', re.MULTILINE)
_FREE = "free"


class ServerStopped(Exception):
    """The server ended, or did not become ready; the message says why."""


class ServerProcess:
    """Our server, in a process group of its own, on a free port of the loopback address.

    Args:
        session: Sends the health checks.
        settings: Its settings, by name and in lower case, beside those in the environment; None takes one away.
    """

    def __init__(self, session: aiohttp.ClientSession, settings: Mapping[str, object]) -> None:
        self._session = session
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._unready_since: float | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        """The id of its main process and of its process group."""
        return self._running().pid

    async def start(self, timeout_s: float) -> None:
        """Start it and wait until it is ready.

        Raises:
            ServerStopped: It ended, or is not ready in time; then it is stopped.
        """
        port = _free_port()
        self.url = f"http://{_HOST}:{port}"
        settings = {"trusted_proxies": _HOST, **self._settings, "host": _HOST, "port": port}
        command = [str(_RUN_CHILD), str(os.getpid()), sys.executable, str(_SERVER)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            env=environment_of(settings),
            start_new_session=True,
        )
        try:
            await asyncio.wait_for(self._ready(), timeout_s)
        except (TimeoutError, asyncio.CancelledError):
            await self.stop(0)
            raise ServerStopped(f"The server is not ready after {timeout_s:g} s: see its log.") from None

    async def _ready(self) -> None:
        while await self._status("/health/ready") != 200:
            if self._running().returncode is not None:
                raise ServerStopped(f"The server ended with status {self._running().returncode}: see its log.")
            await asyncio.sleep(_POLL_S)

    async def check(self, unready_s: float) -> None:
        """Check that it lives, and has not been without a working model for `unready_s`.

        Raises:
            ServerStopped: It has to be replaced.
        """
        if self._running().returncode is not None:
            raise ServerStopped(f"The server ended with status {self._running().returncode}.")
        if await self._status("/health/live") != 200:
            raise ServerStopped("The server does not respond.")
        if await self._status("/health/ready") == 200:
            self._unready_since = None
            return
        now = time.monotonic()
        self._unready_since = self._unready_since or now
        if now - self._unready_since >= unready_s:
            raise ServerStopped(f"The server has not been ready for {unready_s:g} s.")

    async def wait(self) -> int:
        """Wait until its main process ends and return the exit status."""
        return await self._running().wait()

    async def images(self) -> float:
        """Return how many images it has, in whatever state."""
        async with self._session.get(self.url + "/metrics", timeout=aiohttp.ClientTimeout(_CHECK_S)) as response:
            slots = _SLOTS.findall(await response.text())
        return sum(float(count) for state, count in slots if state != _FREE)

    async def stop(self, timeout_s: float) -> None:
        """Have it finish the requests that it has, and kill what is left of it after `timeout_s`."""
        process = self._running()
        if process.returncode is None and timeout_s > 0:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), timeout_s)
        with contextlib.suppress(ProcessLookupError):  # nothing is left
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def _status(self, path: str) -> int:
        try:
            async with self._session.get(self.url + path, timeout=aiohttp.ClientTimeout(_CHECK_S)) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "start() was not called"
        return self._process


def environment_of(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the environment with settings, of which lists and mappings become JSON, as the server reads them."""
    variables = dict(os.environ)
    for name, value in settings.items():
        variable = f"VIT_API_{name.upper()}"
        if value is None:
            variables.pop(variable, None)
        else:
            variables[variable] = str(value) if isinstance(value, str | Path) else json.dumps(value)
    return variables


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
