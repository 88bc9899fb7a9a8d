"""Keeps a server running as a child: starts it again if it dies, and replaces it when its settings change."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

import aiohttp

from deploy.serve_replica.server_process import ServerProcess, ServerStopped

_START_S = 1800.0
_DRAIN_S = 45.0
"""More than VIT_API_DRAIN_TIMEOUT_S, so that a server ends on its own."""
_UNREADY_S = 60.0
_MAX_ENDS = 3
_WITHIN_S = 300.0

logger = logging.getLogger("ray.serve")


class ChildServer:
    """A server that is there again soon after it died.

    Args:
        session: Sends the health checks.
        settings: The server's settings, by name.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        settings: Mapping[str, object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._settings = dict(settings)
        self._clock = clock
        self._server: ServerProcess | None = None
        self._watch: asyncio.Task[None] | None = None
        self._draining: set[asyncio.Task[None]] = set()
        self._changes = asyncio.Lock()
        self._is_up = asyncio.Event()
        self._ended_at: list[float] = []
        self._has_given_up = False

    async def url(self, timeout_s: float) -> str | None:
        """Return the server's address, once it has one; None if it has none in time."""
        try:
            await asyncio.wait_for(self._is_up.wait(), timeout_s)
        except TimeoutError:
            return None
        return self._current().url

    def pid(self) -> int:
        """Return the id of the server's main process and of its process group."""
        return self._current().pid

    async def images(self) -> float:
        """Return how many images the server has; 0 while there is none."""
        return await self._current().images() if self._is_up.is_set() else 0.0

    async def change(self, settings: Mapping[str, object]) -> None:
        """Replace the server by one with other settings, once that is ready; the one before finishes what it has.

        Raises:
            ServerStopped: The new server does not start; the one before stays.
        """
        async with self._changes:
            if self._server is not None and settings == self._settings:
                return
            server = await self._start(settings)
            before, self._settings = self._server, dict(settings)
            self._use(server)
            if before is not None:
                task = asyncio.create_task(before.stop(_DRAIN_S))
                self._draining.add(task)
                task.add_done_callback(self._draining.discard)

    async def check(self) -> None:
        """Start the server if there never was one; else check that it works, or is on its way back.

        Raises:
            ServerStopped: This process can't keep a server running.
        """
        if self._server is None:
            await self.change(self._settings)
        elif self._is_up.is_set():
            await self._server.check(_UNREADY_S)
        elif self._has_given_up:
            raise ServerStopped("The server ends again and again: see its log.")

    async def stop(self) -> None:
        """Have the server finish what it has, and end it."""
        self._is_up.clear()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        running = [] if self._server is None else [self._server.stop(_DRAIN_S)]
        await asyncio.gather(*running, *self._draining)

    async def _start(self, settings: Mapping[str, object]) -> ServerProcess:
        server = ServerProcess(self._session, settings)
        await server.start(_START_S)
        return server

    def _use(self, server: ServerProcess) -> None:
        self._server = server
        self._is_up.set()
        if self._watch is not None:
            self._watch.cancel()
        self._watch = asyncio.create_task(self._keep(server))

    async def _keep(self, server: ServerProcess) -> None:
        """Wait for the server's end, and start another."""
        status = await server.wait()
        self._is_up.clear()
        now = self._clock()
        self._ended_at = [at for at in self._ended_at if now - at < _WITHIN_S] + [now]
        logger.warning("The server ended with status %d and is started again.", status)
        await server.stop(0)  # what is left of its process group
        async with self._changes:
            if self._server is not server:
                return  # a change of the settings has replaced it
            try:
                if len(self._ended_at) >= _MAX_ENDS:
                    raise ServerStopped("The server ends again and again.")
                self._watch = None
                self._use(await self._start(self._settings))
            except ServerStopped:
                self._has_given_up = True
                logger.exception("The server is not started again.")

    def _current(self) -> ServerProcess:
        if self._server is None:
            raise ServerStopped("The server was not started.")
        return self._server
