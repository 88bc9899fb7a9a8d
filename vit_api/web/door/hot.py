"""Requests of hot routes: answered in the call that reads them if the answer is cached, in a task otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from vit_api.errors import ViTError
from vit_api.web.door.application import HotRequest
from vit_api.web.eager import EagerStart
from vit_api.web.responses import Response

if TYPE_CHECKING:
    from vit_api.web.door.protocol import Door

_MIN_PART_BYTES = 4096


class HotExchange:
    """One request of a hot route.

    Args:
        door: Its connection.
        request: The request.
    """

    __slots__ = ("_door", "_has_ended", "_parts", "_request", "_task")

    def __init__(self, door: Door, request: HotRequest) -> None:
        self._door = door
        self._request = request
        self._parts: list[bytes | bytearray] = []
        self._task: asyncio.Task[None] | None = None
        self._has_ended = False

    def start(self) -> None:
        """Admit the request, or refuse it at once."""
        try:
            admitting = EagerStart(self._request.admit())
        except ViTError as error:
            self._refuse(error)
            return
        if not admitting.is_done:
            self._door.hold()
            self._start_task(self._admit(admitting))

    async def _admit(self, admitting: EagerStart[None]) -> None:
        try:
            await admitting.finish()
        except ViTError as error:
            self._door.resume_body()
            self._refuse(error)
        else:
            self._door.resume_body()
            self._door.proceed()

    def receive(self, content: bytes | bytearray, is_complete: bool) -> None:
        """Collect the body; answer when it is complete."""
        try:
            self._request.receive(len(content))
        except ViTError as error:
            self._refuse(error)
            return
        if self._parts and len(content) < _MIN_PART_BYTES:
            self._extend_last(content)
        else:
            self._parts.append(content)
        if is_complete:
            body = b"".join(self._parts)
            self._parts.clear()
            response = self._request.find(body)
            if response is None:
                self.answer(self._request.handle(body))
            else:
                self._respond(response)

    def _extend_last(self, content: bytes | bytearray) -> None:
        """Add a short part to the last one: an object for each byte would take many times the memory of the body."""
        last = self._parts[-1]
        if not isinstance(last, bytearray):
            last = self._parts[-1] = bytearray(last)
        last += content

    def fail(self, error: ViTError) -> None:
        """Refuse the rest of the body, and close."""
        self._door.is_last = True
        self._refuse(error)

    def abandon(self) -> None:
        """Stop: the client left."""
        if self._task is not None:
            self._task.cancel()
        if not self._has_ended:
            self._has_ended = True
            self._request.end(None)

    def answer(self, handling: Coroutine[Any, Any, Response]) -> None:
        """Answer with the response that is returned: at once if nothing has to be waited for."""
        start = EagerStart(handling)
        if start.is_done:
            self._respond(start.result)
        else:
            self._door.hold()
            self._start_task(self._finish(start))

    async def _finish(self, start: EagerStart[Response]) -> None:
        response = await start.finish()
        if not self._has_ended:
            self._respond(response)

    def _refuse(self, error: ViTError) -> None:
        self._parts.clear()
        self._respond(self._request.fail(error))

    def _respond(self, response: Response) -> None:
        self._has_ended = True
        self._door.respond(self._request, response)

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self._door.loop.create_task(work)
        self._door.server_state.tasks.add(self._task)
        self._task.add_done_callback(self._door.server_state.tasks.discard)
