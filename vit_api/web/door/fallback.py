"""Requests of all other routes: through uvicorn's own cycle to the ASGI application.

The only module that touches the internals of uvicorn's protocols.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from vit_api.errors import ViTError

if TYPE_CHECKING:
    from vit_api.web.door.protocol import Door


logger = logging.getLogger(__name__)


class AsgiExchange:
    """One request that the ASGI application answers.

    Args:
        door: Its connection.
        scope: Its ASGI scope.

    Attributes:
        flow: Pauses the reading of a body that is not consumed.
    """

    def __init__(self, door: Door, scope: dict[str, Any]) -> None:
        self._door = door
        self.flow = FlowControl(door.transport)
        self._has_ended = False
        self._cycle = RequestResponseCycle(
            scope=scope | {"state": door.app_state.copy()},  # type: ignore[arg-type]
            transport=self,  # type: ignore[arg-type]
            flow=self.flow,
            logger=logger,
            access_logger=logger,
            access_log=False,
            default_headers=door.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=door.head.expects_continue,
            keep_alive=self._keeps_alive(),
            on_response=self._on_response,
        )

    @property
    def has_begun(self) -> bool:
        """Whether a part of the answer was written."""
        return self._cycle.response_started

    def start(self) -> None:
        """Have the application called."""
        door = self._door
        task = door.loop.create_task(self._cycle.run_asgi(door.config.loaded_app))
        door.server_state.tasks.add(task)
        task.add_done_callback(door.server_state.tasks.discard)

    def receive(self, content: bytes | bytearray, is_complete: bool) -> None:
        """Pass a part of the body on."""
        cycle = self._cycle
        if not cycle.response_complete:
            cycle.body += content
            if len(cycle.body) > HIGH_WATER_LIMIT and not is_complete:
                self.flow.pause_reading()
        cycle.more_body = not is_complete
        if not cycle.response_started:
            cycle.keep_alive = self._keeps_alive()
        cycle.message_event.set()

    def _keeps_alive(self) -> bool:
        """Return whether the connection stays open; uvicorn can't tell a client of HTTP/1.0 so."""
        return self._door.keeps_alive and self._door.head.version == "1.1"

    def fail(self, error: ViTError) -> None:
        """Refuse the rest of the body, and close."""
        if self.flow.read_paused:
            return  # it is the application that doesn't read
        has_begun = self.has_begun
        self.abandon()
        if has_begun:
            self._door.abort()
        else:
            self._door.refuse(error)

    def abandon(self) -> None:
        """Stop: the client left."""
        self._has_ended = True
        self._cycle.disconnected = True
        self._cycle.message_event.set()
        self.flow.resume_writing()

    def _on_response(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self.flow.resume_reading()
            self._door.finish(self._cycle.keep_alive)

    # What uvicorn's cycle takes for the transport.

    def write(self, data: bytes) -> None:
        """Write a part of the answer."""
        self._door.write(data)

    def close(self) -> None:
        """Close; after a whole answer, `_on_response` does."""
        if not self._cycle.response_complete:
            self._door.abort()

    def is_closing(self) -> bool:
        """Return whether the connection is closed, or about to be."""
        return self._door.transport.is_closing()
