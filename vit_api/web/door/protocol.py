"""One connection: splits what arrives into requests, and has each answered before it reads the next.

Owns framing, order, time and the end of a connection. Knows nothing of routes or images: an exchange (`hot`,
`fallback`) answers a request.

A connection is in one state at a time:

    HEAD ──▶ BODY ──▶ ANSWERING ──▶ HEAD ...
      └───────┴──────────┴──▶ LINGERING ──▶ CLOSED

A request is parsed only when the one before it was answered; what a client sends ahead waits in a bounded buffer.
"""

from __future__ import annotations

import asyncio
import enum
import socket
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.utils import get_local_addr, get_remote_addr
from uvicorn.server import ServerState

from vit_api.errors import BadRequest, BodyTimeout, HeadTimeout, Overloaded, ViTError
from vit_api.web.door.answers import ANSWER_START, CLOSE, CONTINUE, KEEP_ALIVE, DateHeader, render
from vit_api.web.door.application import DoorApplication, HotRequest
from vit_api.web.door.chunks import ChunkedBody
from vit_api.web.door.connections import Connections, Wait
from vit_api.web.door.fallback import AsgiExchange
from vit_api.web.door.heads import HEAD_END, Head, check_incomplete, parse_head
from vit_api.web.door.hot import HotExchange
from vit_api.web.responses import Response

_MAX_AHEAD_BYTES = 64 * 1024
"""How much a client may send ahead of answers before it is no longer read."""
_MAX_DISCARDED_BYTES = 4 * 2**20
"""How much of a refused body is read to keep the connection alive; for more it is closed."""
_MAX_BLANK_LINES = 4
_PROBE_S = 0.001
_MAX_PROBE_S = 0.5
_TCP_CLOSE = 7
"""The state of a socket whose peer has reset the connection; see tcp_states.h."""


class State(enum.Enum):
    """The state of a connection."""

    HEAD = enum.auto()
    BODY = enum.auto()
    ANSWERING = enum.auto()
    LINGERING = enum.auto()
    CLOSED = enum.auto()


_HEAD, _BODY, _ANSWERING, _LINGERING, _CLOSED = State


class Answering(Protocol):
    """One request and its answer."""

    def start(self) -> None:
        """Begin; the head was read."""

    def receive(self, content: bytes | bytearray, is_complete: bool) -> None:
        """Take a part of the body; the last one, which may be empty, is complete."""

    def fail(self, error: ViTError) -> None:
        """Answer with an error, if there is still no answer, because the body is faulty or late; then close."""

    def abandon(self) -> None:
        """Stop: the client left."""


class Door(asyncio.Protocol):
    """A connection of a server that uvicorn runs; created by it, see `uvicorn.Config(http=...)`.

    Args:
        application: Answers requests.
        connections: All connections of the process.
        date_header: Renders what all answers have in common.
        config: uvicorn's configuration, which has the ASGI application for all other routes.
        server_state: uvicorn's, which has all connections and tasks that a stop waits for.
        app_state: The state of the lifespan, for ASGI.
    """

    def __init__(
        self,
        application: DoorApplication,
        connections: Connections,
        date_header: DateHeader,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.application = application
        self.config = config
        self.server_state = server_state
        self.app_state = app_state
        self.loop = _loop or asyncio.get_event_loop()
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until the connection is made
        self.head: Head = None  # type: ignore[assignment]  # until one was read
        # What `Connections` keeps.
        self.wait: Wait | None = None
        self.since = 0.0
        self.received_bytes = 0
        self.rate_samples: list[int] = []
        self.unread_bytes = 0
        self.linger_until = 0.0
        self._connections = connections
        self._date_header = date_header
        self._state = _HEAD
        self._ahead: bytes | bytearray = b""
        self._checked = 0
        self._blank_lines = 0
        self._is_running = False
        self._is_read_paused = False
        self._is_write_paused = False
        self._is_stopping = False
        self._is_half_closed = False
        self._has_begun_answer = False
        self._exchange: Answering | None = None
        self._left = 0
        self._chunks: ChunkedBody | None = None
        self._has_room = connections.make_room(self.loop)

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to serve a client, or turn it away."""
        self.transport = transport
        self.server_state.connections.add(self)  # type: ignore[arg-type]
        self.server = get_local_addr(transport)
        self.client = get_remote_addr(transport)
        self._connections.add(self)
        if not self._has_room:
            self.refuse(Overloaded("The server has too many connections. Try again later."))

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything; an unfinished request is abandoned."""
        self.server_state.connections.discard(self)
        self._connections.remove(self)
        was_open = self._state in (_BODY, _ANSWERING)
        self._state = _CLOSED
        exchange, self._exchange = self._exchange, None
        if exchange is not None and was_open:
            exchange.abandon()
        self._ahead = b""

    def data_received(self, data: bytes | bytearray) -> None:
        """Read what arrived."""
        if self._ahead:
            self._ahead += data  # a bytearray unless it is empty
            data = self._ahead
        self._run(data)

    def eof_received(self) -> bool:
        """Return whether the connection stays open: while an answer is due, since the client may still read it."""
        if self._state is not _ANSWERING and not (self._is_write_paused and self._ahead):
            return False
        self._is_half_closed = True
        self._probe(_PROBE_S)
        return True

    def pause_writing(self) -> None:
        """Answer nothing more until the client has read some of its answers."""
        self._is_write_paused = True
        self._connections.block(self, True)
        if isinstance(self._exchange, AsgiExchange):
            self._exchange.flow.pause_writing()

    def resume_writing(self) -> None:
        """Go on."""
        self._is_write_paused = False
        self._connections.block(self, False)
        if isinstance(self._exchange, AsgiExchange):
            self._exchange.flow.resume_writing()
        if self._state is _HEAD:
            self._run_ahead()

    # What uvicorn and `Connections` call.

    def shutdown(self) -> None:
        """Close as soon as no request is in progress; one whose head may be on its way has a moment to arrive."""
        self._is_stopping = True
        self._connections.is_draining = True
        if self.wait is Wait.REQUEST and not self._ahead:
            self.close()

    def time_is_up(self) -> None:
        """React to a client that keeps this connection waiting for too long."""
        if self.wait is Wait.CLOSE:
            self.abort()
        elif self._state is _BODY and self._exchange is not None:
            self._exchange.fail(
                BodyTimeout("The request body did not arrive within the time limit. Send it faster, or a smaller one.")
            )
        elif self._state is _HEAD and self._ahead:
            self.refuse(HeadTimeout("The headers did not arrive within the time limit. Send them at once."))
        else:
            self.close()

    def count_unread(self) -> int:
        """Return how many bytes the client has not read, beyond those in the kernel."""
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close at once, whatever is unread."""
        self._connections.await_client(self, None)
        if self.transport is not None:
            self.transport.abort()

    # What an exchange calls.

    def make_scope(self) -> dict[str, Any]:
        """Return the ASGI scope of the current request."""
        head = self.head
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "server": self.server,
            "client": self.client,
            "scheme": "http",
            "method": head.method,
            "root_path": "",
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "headers": head.headers,
        }

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection stays open after the answer."""
        if self._is_stopping or not self.head.keeps_alive or self.application.is_draining():
            return False
        # A client that waits for `100 Continue` may or may not send its body after another answer.
        return self._state is not _BODY or (
            self._chunks is None and self._left <= _MAX_DISCARDED_BYTES and not self.head.expects_continue
        )

    def write(self, data: bytes) -> None:
        """Write a part of an answer."""
        if self._has_begun_answer:
            self._has_begun_answer = False
            data = data[len(ANSWER_START) :]
        self.transport.write(data)

    def respond(self, request: HotRequest, response: Response) -> None:
        """Write an answer and go on to the next request."""
        keeps_alive = self.keeps_alive
        connection = (b"" if self.head.version == "1.1" else KEEP_ALIVE) if keeps_alive else CLOSE
        self._write_answer(request, response, connection, b"" if self.head.method == "HEAD" else response.body)
        self.finish(keeps_alive)

    def _write_answer(self, request: HotRequest, response: Response, connection: bytes, body: bytes) -> None:
        common = self._date_header.render(self.server_state.default_headers)
        self.write(render(response.status, common, request.headers(response), connection, body))
        request.end(response)

    def finish(self, keeps_alive: bool) -> None:
        """End the current request, whose answer was written."""
        self.server_state.total_requests += 1
        self._exchange = None
        if self._state is _CLOSED:
            return
        if not keeps_alive and self._state is _BODY:
            self._linger()
        elif not keeps_alive:
            self.close()
        elif self._state is _BODY:
            self._begin_discarding()
        else:
            self._state = _HEAD
            self._connections.await_client(self, Wait.REQUEST)
        if not self._is_running:
            self._run_ahead()

    def hold(self) -> None:
        """Stop reading the body until `resume_body`."""
        self._state = _ANSWERING
        self._connections.await_client(self, None)

    def resume_body(self) -> None:
        """Go on to the body of the current request; what has arrived of it is read by `proceed` or `finish`."""
        if self.head.has_body:
            self._state = _BODY

    def proceed(self) -> None:
        """Read the body of the current request after all."""
        self._want_body(is_here=bool(self._ahead))
        if not self._is_running:
            self._run_ahead()

    def refuse(self, error: ViTError) -> None:
        """Answer with an error that leaves no way to go on reading."""
        request = self.application.refuse({"client": self.client, "server": self.server})
        response = request.fail(error)
        self._write_answer(request, response, CLOSE, response.body)
        self._linger()

    def close(self) -> None:
        """Close once the client has read its answer; discard what it still sends."""
        if self._ahead and not self._is_half_closed:
            self._linger()
            return
        self._state = _CLOSED
        self._connections.await_client(self, Wait.CLOSE)
        self.transport.close()

    # Reading.

    def _run_ahead(self) -> None:
        """Read what was sent ahead."""
        if self._is_read_paused:
            self._is_read_paused = False
            self.transport.resume_reading()
        if self._ahead:
            self._run(self._ahead)
        if self._is_half_closed and self._state in (_HEAD, _BODY):
            self._ahead = b""
            self.close()

    def _run(self, data: bytes | bytearray) -> None:
        """Read requests, and have them answered, until one has to wait."""
        position, end = 0, len(data)
        self._is_running = True
        try:
            while position < end:
                if self._state is _HEAD and not self._is_write_paused:
                    begun = self._read_head(data, position)
                    if begun == position:
                        break
                    position = begun
                elif self._state is _BODY:
                    position = self._read_body(data, position)
                else:
                    break
        except ViTError as error:
            position = end
            self._fail(error)
        finally:
            self._is_running = False
            self._keep(data, position)

    def _keep(self, data: bytes | bytearray, position: int) -> None:
        """Keep what can't be read yet."""
        if position >= len(data):
            self._ahead = b""
            return
        if self._state is _LINGERING or self._state is _CLOSED:
            self._ahead = b""
            self._connections.await_client(self, self.wait)
            return
        if position or not isinstance(data, bytearray):
            data = bytearray(memoryview(data)[position:])
        self._ahead = data
        if len(data) > _MAX_AHEAD_BYTES and not self._is_read_paused and not self._is_half_closed:
            self._is_read_paused = True
            self.transport.pause_reading()

    def _read_head(self, data: bytes | bytearray, position: int) -> int:
        """Begin the next request if its head is complete; return the position after what was read."""
        while data.startswith(b"\r\n", position):  # RFC 9112, section 2.2
            self._blank_lines += 1
            if self._blank_lines > _MAX_BLANK_LINES:
                raise BadRequest("There are empty lines instead of a request.")
            return position + 2
        end = data.find(HEAD_END, max(position, position + self._checked - 3))
        if end < 0:
            if self.wait is not Wait.HEAD:
                self._connections.await_client(self, Wait.HEAD)
            check_incomplete(data, position, position + self._checked)
            self._checked = len(data) - position
            return position
        self._checked = self._blank_lines = 0
        self.head = head = parse_head(data, position, end + 2)
        self._begin(head, end + 4 - position, is_here=len(data) > end + 4)
        return end + len(HEAD_END)

    def _begin(self, head: Head, head_bytes: int, *, is_here: bool) -> None:
        """Begin a request."""
        self.received_bytes = 0
        self._left = head.length
        self._chunks = ChunkedBody(head_bytes, len(head.headers)) if head.is_chunked else None
        self._state = _BODY
        scope = self.make_scope()
        request = self.application.open(scope)
        exchange = AsgiExchange(self, scope) if request is None else HotExchange(self, request)
        self._exchange = exchange
        if not head.has_body:
            self._state = _ANSWERING
            self._connections.await_client(self, None)
        exchange.start()
        if self._exchange is not exchange:
            return  # it was refused
        if not head.has_body:
            exchange.receive(b"", True)
        elif self._state is _BODY:
            self._want_body(is_here=is_here)

    def _want_body(self, *, is_here: bool) -> None:
        if self.head.has_body:
            self.rate_samples = []
            self._connections.await_client(self, Wait.BODY)
            if not is_here and isinstance(self._exchange, HotExchange) and self.head.expects_continue:
                self.write(CONTINUE)
        elif self._exchange is not None:
            self._state = _ANSWERING
            self._connections.await_client(self, None)
            self._exchange.receive(b"", True)

    def _read_body(self, data: bytes | bytearray, position: int) -> int:
        """Read more of the body; return the position after it."""
        start = position
        if self._chunks is not None:
            position = self._chunks.feed(data, position)
            content: bytes | bytearray = self._chunks.take()
            is_complete = self._chunks.is_complete
        else:
            position = min(position + self._left, len(data))
            content = data[start:position]
            self._left -= position - start
            is_complete = self._left == 0
        self.received_bytes += position - start
        exchange = self._exchange
        if is_complete:
            self._state = _ANSWERING
            self._connections.await_client(self, None)
        else:
            self._connections.await_client(self, Wait.LINGER if exchange is None else Wait.BODY)
        if exchange is not None:
            exchange.receive(content, is_complete)
        elif is_complete:  # the rest of a refused body
            self._state = _HEAD
            self._connections.await_client(self, Wait.REQUEST)
        return position

    def _fail(self, error: ViTError) -> None:
        """Refuse what can't be read on."""
        if self._state is _BODY and self._exchange is not None:
            self._exchange.fail(error)
        elif self._state is _BODY:
            self.close()
        else:
            self.refuse(error)

    # The end.

    def _linger(self) -> None:
        """Send the end of the answer, and read on, so that the client reads it; RFC 9112, section 9.6."""
        self._exchange = None
        self._state = _LINGERING
        self._ahead = b""
        self._begin_discarding()
        if self._is_read_paused:
            self._is_read_paused = False
            self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _begin_discarding(self) -> None:
        """Limit the time in which the client may send what is discarded."""
        self.linger_until = self.loop.time() + self._connections.limits.linger_s
        self._connections.await_client(self, Wait.LINGER)

    def _probe(self, after_s: float) -> None:
        """Find out whether a client that sends no more still reads.

        TCP doesn't tell a half-closed connection from a closed one until something is sent. What is sent is what every
        answer begins with; a client that has closed responds with a reset, which only its socket's state shows.
        """
        if self._state is _CLOSED:
            return
        if after_s == _PROBE_S and self._may_begin():
            self.write(ANSWER_START)
            self._has_begun_answer = True
        if _is_reset(self.transport):
            self.abort()
            return
        self.loop.call_later(after_s, self._probe, min(2 * after_s, _MAX_PROBE_S))

    def _may_begin(self) -> bool:
        """Return whether an answer is due of which nothing was written."""
        if self._state is not _ANSWERING:
            return False
        return not isinstance(self._exchange, AsgiExchange) or not self._exchange.has_begun


def _is_reset(transport: asyncio.Transport) -> bool:
    connection = transport.get_extra_info("socket")
    try:
        return bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE)
    except OSError:
        return False
