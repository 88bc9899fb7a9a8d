"""Long bodies, read from the socket straight into the memory where they are kept. Knows nothing of HTTP.

By default the event loop reads up to 256 KiB at once into a buffer of its own and copies them into an object, which is
copied again into the body.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class LongBodyOwner(Protocol):
    """The connection that a long body arrives on."""

    def long_body_received(self, count: int) -> None:
        """Take note of so many further bytes."""

    def next_room(self) -> memoryview | None:
        """Return where the next bytes are written; None if the body is complete, or was refused."""

    def long_body_ended(self) -> None:
        """Go on: the body is complete, and nothing else refers to its memory."""

    def pause_reading(self) -> None:
        """Read nothing until `long_body_ended`."""


class LongBodyReader(asyncio.BufferedProtocol):
    """Reads the rest of a body, in place of the connection's own protocol.

    Args:
        owner: The connection.
        protocol: Its own protocol.
        transport: Its transport.
        room: Where the next bytes are written.
    """

    def __init__(
        self, owner: LongBodyOwner, protocol: asyncio.Protocol, transport: asyncio.Transport, room: memoryview
    ) -> None:
        self._owner = owner
        self._protocol = protocol
        self._transport = transport
        self._room = room
        self._is_stopped = False
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]
        _set_protocol(transport, self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes are written."""
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of what was written."""
        self._room = self._room[nbytes:]
        self._owner.long_body_received(nbytes)
        if self._room:
            return
        room = self._owner.next_room()
        if room is not None:
            self._room = room
        elif not self._is_stopped:
            self.stop()
            self._owner.pause_reading()
            # The event loop refers to the memory until this returns.
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        try:
            self._owner.long_body_ended()
        except BaseException:
            self._transport.abort()  # as the event loop does after an error in `data_received`
            raise

    def stop(self) -> None:
        """Leave what follows to the connection's own protocol."""
        if not self._is_stopped:
            self._is_stopped = True
            self._room = memoryview(b"")
            _set_protocol(self._transport, self._protocol)


def _set_protocol(transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
    """Have a protocol called from now on; what it reads into is chosen when reading begins."""
    is_reading = transport.is_reading()
    if is_reading:
        transport.pause_reading()
    transport.set_protocol(protocol)
    if is_reading:
        transport.resume_reading()
