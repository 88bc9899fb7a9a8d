"""Follows the main process when models are loaded and unloaded, and passes it what operators ask for.

For one HTTP process, on its event loop. Requests in flight keep the routes that they began with. Knows nothing of how
a model is loaded.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import logging
import os
from collections.abc import Callable
from typing import Any

from vit_api.errors import BadRequest, LoadFailed, NotFound, NotReady, ViTError
from vit_api.ipc import descriptors
from vit_api.ipc.channel import Channel, ChannelClosed
from vit_api.shared.messages import Applied, Catalogue, Command, CommandReply, Drained
from vit_api.shared.server import Shared
from vit_api.web.served import ServedDeployments

logger = logging.getLogger(__name__)

_KINDS: dict[str, type[ViTError]] = {"bad_request": BadRequest, "not_found": NotFound, "not_ready": NotReady}

Prepare = Callable[[], Callable[[], None]]
"""Builds the routes of the deployments that there are, and returns what serves them."""


class LiveDeployments:
    """The deployments of an HTTP process as the main process wants them.

    Args:
        shared: What the process shares with others.
        served: What it has of each deployment.
        channel: Its end of the channel to the main process.

    Attributes:
        loading: Names and versions of the models that are being loaded.
        prepare: See `Prepare`; called in a thread.
        connect_mirrors: Connects the mirrors that there are with what they mirror.
    """

    def __init__(self, shared: Shared, served: ServedDeployments, channel: Channel) -> None:
        self._shared = shared
        self._served = served
        self._channel = channel
        self._messages: asyncio.Queue[tuple[Any, list[int]]] = asyncio.Queue()
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[CommandReply]] = {}
        self._task: asyncio.Task[None] | None = None
        self.loading: tuple[tuple[str, str], ...] = ()
        self.prepare: Prepare = lambda: lambda: None
        self.connect_mirrors: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Listen to the main process, on the running event loop."""
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._read)
        self._task = asyncio.create_task(self._follow())
        self._report_drained()

    def stop(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        if self._task is not None:
            self._task.cancel()

    async def command(self, kind: str, name: str, arguments: dict[str, Any]) -> CommandReply:
        """Have the main process do something, and wait until it is done.

        Raises:
            ViTError: It was not done; the message says why.
        """
        number = next(self._numbers)
        waiter = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._channel.send(Command(number, kind, name, arguments))
            reply: CommandReply = await waiter
        finally:
            del self._waiting[number]
        if reply.problem is not None:
            raise _KINDS.get(reply.code, LoadFailed)(reply.problem)
        return reply

    def others(self) -> list[tuple[str, str, str]]:
        """Return names, versions and states of the models that are being loaded or unloaded."""
        unloading = [one.spec for one in self._shared.deployments if one.is_unloading]
        return [
            *((name, version, "LOADING") for name, version in self.loading),
            *((spec.name, spec.version, "UNLOADING") for spec in unloading),
        ]

    def _read(self) -> None:
        try:
            while (received := self._channel.receive()) is not None:
                self._messages.put_nowait(received)
        except ChannelClosed:
            logger.critical("the main process no longer talks to this one, which ends, so that another one is started")
            logging.shutdown()
            os._exit(1)

    async def _follow(self) -> None:
        while True:
            message, fds = await self._messages.get()
            try:
                if isinstance(message, Catalogue):
                    await self._apply(message, fds)
                elif message.number in self._waiting:
                    self._waiting[message.number].set_result(message)
            except Exception:
                logger.exception("this process can't follow the main process, so that it ends")
                logging.shutdown()
                os._exit(1)  # its successor begins with what there is now

    async def _apply(self, catalogue: Catalogue, fds: list[int]) -> None:
        """Serve what the catalogue says; if it only says what is being loaded, the routes stay as they are."""
        before = self._shared.entries()
        known = {one.number: one for one in self._shared.deployments}
        if catalogue.added is not None:
            with descriptors.adopting(fds):
                added = known[catalogue.added.place] = self._shared.make_deployment(catalogue.added)
            self._served.add(added).start()
        for entry in catalogue.entries:
            known[entry.place].spec = entry.spec
            known[entry.place].is_unloading = entry.is_unloading
        places = [entry.place for entry in catalogue.entries]
        self._shared.set_deployments([known[place] for place in places])
        self.loading = catalogue.loading
        if catalogue.entries != before:
            serve = await asyncio.to_thread(self.prepare)
            serve()
            self.connect_mirrors()
            for place in known.keys() - set(places):
                await self._served.remove(place)
            del known, serve
            gc.collect()  # the routes before these refer to each other, and to shared memory: they would stay for long
        self._served.share_slots()
        self._channel.send(Applied(catalogue.generation))
        self._report_drained()

    def _report_drained(self) -> None:
        """Report each deployment that is unloading, once it has answered every request."""
        in_flight = self._served.in_flight
        assert in_flight is not None
        for one in self._shared.deployments:
            if one.is_unloading:
                in_flight.when_empty(one.number, functools.partial(self._channel.send, Drained(one.number)))
