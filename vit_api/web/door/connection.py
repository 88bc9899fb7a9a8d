"""One connection: its state, what it waits for, and how it ends. Knows nothing of what a request is.

It is in one state at a time:

    HEAD ──▶ BODY ──▶ ANSWERING ──▶ HEAD ...
      └───────┴──────────┴──▶ LINGERING ──▶ CLOSED
"""

from __future__ import annotations

import asyncio
import enum
import socket

from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from vit_api.web.door.answers import ANSWER_START
from vit_api.web.door.connections import Connections, Wait

_MAX_AHEAD_BYTES = 64 * 1024
"""How much a client may send ahead of answers before it is no longer read."""
_PROBE_S = 0.001
_MAX_PROBE_S = 0.5
_TCP_CLOSE, _TCP_CLOSE_WAIT = 7, 8
"""The states of a socket whose peer has reset the connection, and of one whose peer sends no more; see tcp_states.h."""


class State(enum.Enum):
    """The state of a connection."""

    HEAD = enum.auto()
    """A request is read next."""
    BODY = enum.auto()
    ANSWERING = enum.auto()
    """What arrives is kept until the current request is answered."""
    LINGERING = enum.auto()
    """The last answer was sent; what arrives is discarded."""
    CLOSED = enum.auto()


HEAD, BODY, ANSWERING, LINGERING, CLOSED = State


class ClientConnection(asyncio.Protocol):
    """A connection, without what is said on it.

    Args:
        connections: All connections of the process.
        server_state: uvicorn's, which has the connections that a stop waits for.
        loop: The event loop.

    Attributes:
        transport: The transport.
        server: The address that the client has connected to.
        client: The client's address.
        state: The state.
    """

    def __init__(self, connections: Connections, server_state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        self.server_state = server_state
        self.loop = loop
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until the connection is made
        self.server: tuple[str, int | None] | None = None
        self.client: tuple[str, int] | None = None
        self.state = HEAD
        # What `Connections` keeps.
        self.wait: Wait | None = None
        self.since = 0.0
        self.received_bytes = 0
        self.rate_samples: list[int] = []
        self.unread_bytes = 0
        self.linger_until = 0.0
        self._connections = connections
        self._ahead: bytes | bytearray = b""
        self._is_read_paused = False
        self._is_write_paused = False
        self._is_half_closed = False
        self._is_watching = False
        self._is_probing = False
        self._has_begun_answer = False
        self._has_room = connections.make_room(loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to serve a client."""
        self.transport = transport
        self.server_state.connections.add(self)  # type: ignore[arg-type]
        self.server = get_local_addr(transport)
        self.client = get_remote_addr(transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        self.server_state.connections.discard(self)
        self._connections.remove(self)
        self.state = CLOSED
        self._ahead = b""

    def eof_received(self) -> bool:
        """Return whether the connection stays open: while an answer is due, since the client may still read it."""
        if self.state is not ANSWERING and not (self._is_write_paused and self._ahead):
            return False
        self._is_half_closed = True
        self._begin_probing()
        return True

    def pause_writing(self) -> None:
        """Answer nothing more until the client has read some of its answers."""
        self._is_write_paused = True
        self._connections.block(self, True)

    def resume_writing(self) -> None:
        """Go on."""
        self._is_write_paused = False
        self._connections.block(self, False)

    # What uvicorn and `Connections` call.

    def time_is_up(self) -> None:
        """React to a client that keeps this connection waiting for too long."""
        raise NotImplementedError

    def shutdown(self) -> None:
        """Close as soon as no request is in progress; one whose head may be on its way has a moment to arrive."""
        self._connections.is_stopping = True
        if self.wait is Wait.REQUEST and not self._ahead:
            self.close()

    def count_unread(self) -> int:
        """Return how many bytes the client has not read, beyond those in the kernel."""
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close at once, whatever is unread."""
        self._connections.await_client(self, None)
        if self.transport is not None:
            self.transport.abort()

    # What subclasses call.

    @property
    def can_begin_answer(self) -> bool:
        """Whether an answer is due of which nothing was written."""
        return self.state is ANSWERING

    def write(self, data: bytes) -> None:
        """Write a part of an answer."""
        if self._has_begun_answer:
            self._has_begun_answer = False
            data = data[len(ANSWER_START) :]
        self.transport.write(data)

    def close(self) -> None:
        """Close once the client has read its answer; discard what it still sends."""
        if self._ahead and not self._is_half_closed:
            self.linger()
            return
        self.state = CLOSED
        self._connections.await_client(self, Wait.CLOSE)
        self.transport.close()

    def linger(self) -> None:
        """Send the end of the answer, and read on, so that the client reads it; RFC 9112, section 9.6."""
        self.state = LINGERING
        self._ahead = b""
        self.begin_discarding()
        self.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def begin_discarding(self) -> None:
        """Limit the time in which the client may send what is discarded."""
        self.linger_until = self.loop.time() + self._connections.limits.linger_s
        self._connections.await_client(self, Wait.LINGER)

    def keep(self, data: bytes | bytearray, position: int) -> None:
        """Keep what can't be read yet, from a position on."""
        if position >= len(data):
            self._ahead = b""
            return
        if self.state is LINGERING or self.state is CLOSED:
            self._ahead = b""
            self._connections.await_client(self, self.wait)
            return
        if position or not isinstance(data, bytearray):
            data = bytearray(memoryview(data)[position:])
        self._ahead = data
        if len(data) > _MAX_AHEAD_BYTES and not self._is_read_paused and not self._is_half_closed:
            self.pause_reading()
            if not self._is_watching:
                self._is_watching = True
                self._watch()

    def pause_reading(self) -> None:
        """Read nothing more until `resume_reading`."""
        if not self._is_read_paused:
            self._is_read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on if too much was kept."""
        if self._is_read_paused:
            self._is_read_paused = False
            self.transport.resume_reading()

    def _watch(self) -> None:
        """Notice, while nothing is read, that a client sends no more, of which the event loop says nothing then."""
        if self.state is CLOSED or not self._is_read_paused or self._is_probing:
            self._is_watching = False
        elif _tcp_state(self.transport) in (_TCP_CLOSE, _TCP_CLOSE_WAIT):
            self._begin_probing()
        else:
            self.loop.call_later(_MAX_PROBE_S, self._watch)

    def _begin_probing(self) -> None:
        if not self._is_probing:
            self._is_probing = True
            self._probe(_PROBE_S)

    def _probe(self, after_s: float) -> None:
        """Find out whether a client that sends no more still reads.

        TCP doesn't tell a half-closed connection from a closed one until something is sent. What is sent is what every
        answer begins with; a client that has closed responds with a reset, which only its socket's state shows.
        """
        if self.state is CLOSED:
            return
        if after_s == _PROBE_S and self.can_begin_answer:
            self.write(ANSWER_START)
            self._has_begun_answer = True
        if _tcp_state(self.transport) == _TCP_CLOSE:
            self.abort()
            return
        self.loop.call_later(after_s, self._probe, min(2 * after_s, _MAX_PROBE_S))


def _tcp_state(transport: asyncio.Transport) -> int | None:
    connection = transport.get_extra_info("socket")
    try:
        state: int = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:
        return None
    return state
