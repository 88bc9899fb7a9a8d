"""Requests of hot routes: answered in the call that reads them if the answer is cached, in a task otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from io import SEEK_END, BytesIO
from typing import TYPE_CHECKING, Any

from vit_api.errors import ViTError
from vit_api.web.door.application import HotRequest
from vit_api.web.eager import EagerStart
from vit_api.web.responses import Response

if TYPE_CHECKING:
    from vit_api.web.door.protocol import Door

_GROWTH = 4
"""How much longer the next memory of a long body is that is read straight into its place."""
_LONG_BYTES = 2**20
_MAPPED_BYTES = 2**23
"""The C library gives a block of this size a mapping of its own, which grows in place, and is returned when freed. It
takes memory only where it was written."""


class HotExchange:
    """One request of a hot route.

    Args:
        door: Its connection.
        request: The request.
    """

    __slots__ = ("_body", "_door", "_has_ended", "_request", "_task")

    def __init__(self, door: Door, request: HotRequest) -> None:
        self._door = door
        self._request = request
        self._body: BytesIO | None = None
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

    def make_room(self, count: int) -> memoryview | None:
        """Return where the next bytes of the body are to be written.

        Their memory is reserved before they arrive: three times as much as has arrived, at most.

        Args:
            count: How many are missing.

        Returns:
            The room, for at most so many; None if the request was refused.
        """
        assert self._body is not None
        start = self._body.tell()
        whole, end = start + count, min(start + count, _GROWTH * start)
        try:
            self._request.receive(end - start)
        except ViTError as error:
            self._refuse(error)
            return None
        has_mapping = whole >= _MAPPED_BYTES and end >= _LONG_BYTES
        self._body = _moved(self._body, max(end, _MAPPED_BYTES) if has_mapping else end)
        self._body.seek(end)
        return self._body.getbuffer()[start:end]

    def receive(self, content: bytes | bytearray, is_complete: bool) -> None:
        """Collect the body; answer when it is complete."""
        try:
            self._request.receive(len(content))
        except ViTError as error:
            self._refuse(error)
            return
        if is_complete:
            self._answer_whole(self._whole(content))
        elif self._body is None:
            self._body = BytesIO(content)
            self._body.seek(0, SEEK_END)
        else:
            if self._body.tell() < _LONG_BYTES <= self._body.tell() + len(content):
                self._body = _moved(self._body, _MAPPED_BYTES)
            self._body.write(content)

    def _answer_whole(self, body: bytes) -> None:
        if self._door.answer_again(body, is_admitted=True):
            self._has_ended = True
            self._request.release()
            return
        response = self._request.find(body)
        if response is None:
            self.answer(self._request.handle(body))
        else:
            self._door.keep_repeat(self._request, response)
            self._respond(response)

    def _whole(self, last: bytes | bytearray) -> bytes:
        """Return the body, given its last part.

        `BytesIO` keeps it in one piece, which grows in place and is returned without a copy. A list of parts would take
        the memory of a long body twice, and leave the first half scattered.
        """
        if self._body is None:
            return bytes(last)
        collected, self._body = self._body, None
        collected.write(last)
        collected.truncate()
        return collected.getvalue()

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
        self._body = None
        self._respond(self._request.fail(error))

    def _respond(self, response: Response) -> None:
        self._has_ended = True
        self._door.respond(self._request, response)

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self._door.loop.create_task(work)
        self._door.server_state.tasks.add(self._task)
        self._task.add_done_callback(self._door.server_state.tasks.discard)


def _moved(collected: BytesIO, size: int) -> BytesIO:
    """Return the start of a body in a block of its own: one that grows on the heap leaves a hole of every size."""
    moved = BytesIO(bytes(size))
    moved.write(collected.getbuffer()[: collected.tell()])
    return moved
