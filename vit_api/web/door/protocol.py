"""Requests on a connection: splits what arrives into requests, and has each answered before it reads the next.

Owns framing, order and time. Knows nothing of routes or images: an exchange (`hot`, `fallback`) answers a request. What
a client sends ahead of answers waits in a bounded buffer.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Protocol

import uvicorn
from uvicorn.server import ServerState

from vit_api.errors import BodyTimeout, HeadTimeout, Overloaded, ViTError
from vit_api.web.door.answers import CLOSE, CONTINUE, KEEP_ALIVE, OK, DateHeader, render
from vit_api.web.door.application import DoorApplication, HotRequest, KnownAnswer
from vit_api.web.door.connection import ANSWERING, BODY, CLOSED, HEAD, ClientConnection
from vit_api.web.door.connections import Connections, Wait
from vit_api.web.door.fallback import AsgiExchange
from vit_api.web.door.framing import Body, HeadReader, SizedBody, body_of
from vit_api.web.door.head_cache import HeadCache
from vit_api.web.door.heads import Head
from vit_api.web.door.hot import HotExchange
from vit_api.web.door.known_requests import SAMPLE_BYTES, KnownRequests, LoopTurn
from vit_api.web.door.long_bodies import LongBodyReader
from vit_api.web.responses import Response

_NEXT_REQUEST = Wait.REQUEST
_MAX_DISCARDED_BYTES = 4 * 2**20
"""How much of a refused body is read to keep the connection alive; for more it is closed."""

_LONG_BODY_BYTES = 128 * 1024
"""How much of a body must be missing so that it is read straight into its place."""
_LONG_BODY_START_BYTES = 64 * 1024
"""How much of it must have arrived first."""
_MAX_REQUESTS_AT_ONCE = 32
"""How many requests of one connection are begun before others have their turn."""
_MAX_COUNTED = 128
"""How many requests are counted that a client has sent ahead and left behind."""


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


class Door(ClientConnection):
    """A connection of a server that uvicorn runs; created by it, see `uvicorn.Config(http=...)`.

    Args:
        application: Answers requests.
        connections: All connections of the process.
        date_header: Renders what all answers have in common.
        heads: Parses the heads of requests.
        known: The requests of the process of which every byte is known.
        config: uvicorn's configuration, which has the ASGI application for all other routes.
        server_state: uvicorn's, which has all connections and tasks that a stop waits for.
        app_state: The state of the lifespan, for ASGI.

    Attributes:
        head: The head of the current request.
        is_last: Whether the connection is to be closed after the current request.
    """

    def __init__(
        self,
        application: DoorApplication,
        connections: Connections,
        date_header: DateHeader,
        heads: HeadCache,
        known: KnownRequests,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(connections, server_state, _loop or asyncio.get_event_loop())
        self.application = application
        self.config = config
        self.app_state = app_state
        self.head: Head = None  # type: ignore[assignment]  # until one was read
        self.is_last = False
        self._date_header = date_header
        self._heads = HeadReader(heads)
        self._known = known
        self._body: Body = SizedBody(0)
        self._exchange: Answering | None = None
        self._long_body: LongBodyReader | None = None
        self._is_running = False

    # What the transport and `Connections` call.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to serve a client, or turn it away."""
        super().connection_made(transport)
        if not self._has_room:
            self.refuse(Overloaded("The server has too many connections. Try again later."))

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything; an unfinished request is abandoned."""
        ahead = self._ahead
        super().connection_lost(exc)
        self._long_body = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()
        if ahead:
            self._abandon_ahead(ahead)

    def _abandon_ahead(self, data: bytes | bytearray) -> None:
        """Record the requests that were never begun, up to the first one that is malformed or whose head is cut off."""
        position = 0
        try:
            for _ in range(_MAX_COUNTED):
                head, position = self._heads.read(data, position)
                if head is None:
                    break
                self.head = head
                request = self.application.open(self.make_scope())
                if request is not None:
                    request.end(None)
                position = body_of(head).feed(data, position)
        except ViTError:
            pass  # no client is left to be told

    def data_received(self, data: bytes | bytearray) -> None:
        """Read what arrived."""
        if self._ahead:
            self._ahead += data  # a bytearray unless it is empty
            data = self._ahead
        elif self.wait is _NEXT_REQUEST and not self._is_write_paused:
            known, middle = self._known, len(data) >> 1
            request = known.by_sample.get(data[middle : middle + SAMPLE_BYTES])  # type: ignore[arg-type]  # bytes here
            if request is not None and request[0] == data and self._answer_known(request[1], known.turn):
                return
        self._run(data)

    def _answer_known(self, known: KnownAnswer, turn: LoopTurn) -> bool:
        """Answer a request of which every byte is known; return whether that was possible."""
        began_at = turn.last_ended_at or turn.begin(self.loop)
        answer = known.render(began_at, turn, self.client) if began_at else None
        if answer is None:
            return False
        state, date_header = self.server_state, self._date_header
        if state.default_headers is not date_header.headers:
            date_header.render(state.default_headers)
        self.transport.write(date_header.ok + answer)
        state.total_requests += 1
        self._connections.idle.move_to_end(self)
        self.since = began_at
        return True

    def pause_writing(self) -> None:
        """Answer nothing more until the client has read some of its answers."""
        super().pause_writing()
        if isinstance(self._exchange, AsgiExchange):
            self._exchange.flow.pause_writing()

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        if isinstance(self._exchange, AsgiExchange):
            self._exchange.flow.resume_writing()
        if self.state is HEAD:
            self._run_ahead()

    def time_is_up(self) -> None:
        """React to a client that keeps this connection waiting for too long."""
        if self.wait is Wait.CLOSE:
            self.abort()
        elif self.state is BODY and self._exchange is not None:
            self._exchange.fail(
                BodyTimeout("The request body did not arrive within the time limit. Send it faster, or a smaller one.")
            )
        elif self.state is HEAD and self._ahead:
            self.refuse(HeadTimeout("The headers did not arrive within the time limit. Send them at once."))
        else:
            self.close()

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
    def can_begin_answer(self) -> bool:
        """Whether an answer is due of which nothing was written."""
        exchange = self._exchange
        return self.state is ANSWERING and not (isinstance(exchange, AsgiExchange) and exchange.has_begun)

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection stays open after the answer."""
        if not self.head.keeps_alive or self.is_last or self._connections.is_draining:
            return False
        # A client that waits for `100 Continue` may or may not send its body after another answer.
        return self.state is not BODY or (
            isinstance(self._body, SizedBody)
            and self._body.rest_bytes <= _MAX_DISCARDED_BYTES
            and not self.head.expects_continue
        )

    def respond(self, request: HotRequest, response: Response) -> None:
        """Write an answer and go on to the next request."""
        keeps_alive = self.keeps_alive
        connection = (b"" if self.head.version == "1.1" else KEEP_ALIVE) if keeps_alive else CLOSE
        self._write_answer(request, response, connection, b"" if self.head.method == "HEAD" else response.body)
        self.finish(keeps_alive)

    def answer_again(self, body: bytes, whole: bytes | None = None, *, is_admitted: bool = False) -> bool:
        """Answer the current request by what is known of its head, if it can be; return whether it was.

        Args:
            body: Its body.
            whole: The whole request, if it has arrived in one piece and without another one.
            is_admitted: Whether the client was charged for it, and must not be charged again.
        """
        repeat = self.head.memo.repeat
        if repeat is not None and ((is_admitted and repeat.charge is not None) or self._connections.is_draining):
            repeat = None
        answer = None if repeat is None else repeat.find(body, self.client)
        if repeat is None or answer is None:
            return False
        self.write(b"".join((OK, self._date_header.render(self.server_state.default_headers), answer)))
        repeat.end(len(body), self.client)
        if whole is not None:
            known = repeat.known(len(body))
            if known is not None:
                self._known.add(whole, known, self.loop)
        self.finish(True)
        return True

    def keep_repeat(self, request: HotRequest, response: Response) -> None:
        """Keep what answers further requests with this head, given the response to one that was found in the cache."""
        head = self.head
        if response.status == HTTPStatus.OK and head.keeps_alive and head.version == "1.1":
            head.memo.repeat = request.repeat(response)

    def _write_answer(self, request: HotRequest, response: Response, connection: bytes, body: bytes) -> None:
        common = self._date_header.render(self.server_state.default_headers)
        self.write(render(response.status, common, request.header_lines(response), connection, body))
        request.end(response)

    def finish(self, keeps_alive: bool) -> None:
        """End the current request, whose answer was written."""
        self.server_state.total_requests += 1
        self._exchange = None
        self._leave_long_body()
        if self.state is CLOSED:
            return
        if not keeps_alive and self.state is BODY:
            self.linger()
        elif not keeps_alive:
            self.close()
        elif self.state is BODY:
            self.begin_discarding()
        else:
            self.state = HEAD
            self._connections.await_client(self, Wait.REQUEST)
        if not self._is_running:
            self._run_ahead()

    def hold(self) -> None:
        """Stop reading the body until `resume_body`."""
        self.state = ANSWERING
        self._connections.await_client(self, None)

    def resume_body(self) -> None:
        """Go on to the body of the current request; what has arrived of it is read by `proceed` or `finish`."""
        if self.head.has_body:
            self.state = BODY

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
        self.linger()

    def linger(self) -> None:
        """Send the end of the answer, and discard what still arrives."""
        self._exchange = None
        super().linger()

    # Reading.

    def _run_ahead(self) -> None:
        """Read what was sent ahead."""
        if self.state is CLOSED:
            return
        self.resume_reading()
        if self._ahead:
            self._run(self._ahead)
        if self._is_half_closed and self.state in (HEAD, BODY):
            self._ahead = b""
            self.close()

    def _run(self, data: bytes | bytearray) -> None:
        """Read requests, and have them answered, until one has to wait."""
        position, end = 0, len(data)
        turns = _MAX_REQUESTS_AT_ONCE
        self._is_running = True
        self._known.turn.last_ended_at = 0.0
        try:
            while position < end:
                if self.state is HEAD and not self._is_write_paused:
                    if turns == 0:
                        self._yield_turn()
                        break
                    turns -= 1
                    head, position = self._heads.read(data, position)
                    if head is None:
                        self._await_head(is_begun=position < end)
                        break
                    position = self._begin(head, data, position)
                elif self.state is BODY:
                    position = self._read_body(data, position)
                else:
                    break
        except ViTError as error:
            position = end
            self._fail(error)
        finally:
            self._is_running = False
            if position < end:
                self.keep(data, position)
            else:
                self._ahead = b""

    def _yield_turn(self) -> None:
        """Go on when other connections have had their turn; otherwise many small requests would hold them up."""
        self.pause_reading()
        self.loop.call_soon(self._run_ahead)

    def _await_head(self, *, is_begun: bool) -> None:
        if is_begun and self.wait is not Wait.HEAD:
            self._connections.await_client(self, Wait.HEAD)

    def _begin(self, head: Head, data: bytes | bytearray, position: int) -> int:
        """Begin a request, and answer it if its whole body is here; return the position after what was read."""
        self.head = head
        end = position + head.length
        body = bytes(data[position:end]) if 0 < head.length <= len(data) - position else None
        if body is not None:
            is_whole = position == head.size and end == len(data) and isinstance(data, bytes)
            if self.answer_again(body, data if is_whole else None):  # type: ignore[arg-type]
                return end
        scope = self.make_scope()
        request = self.application.open(scope)
        if request is not None and body is not None:
            self._answer_whole(request, body)
            return end
        apart = AsgiExchange(self, scope) if request is None else HotExchange(self, request)
        self._begin_apart(apart, is_here=position < len(data))
        return position

    def _answer_whole(self, request: HotRequest, body: bytes) -> None:
        """Answer a request of a hot route whose whole body is here."""
        self.state = ANSWERING
        response = request.find_whole(body)
        if response is None:
            self._exchange = exchange = HotExchange(self, request)
            exchange.answer(request.answer(body))
            return
        self.keep_repeat(request, response)
        self.respond(request, response)

    def _begin_apart(self, exchange: Answering, *, is_here: bool) -> None:
        """Begin a request whose body is still on its way, or is for the ASGI application."""
        head, self._exchange = self.head, exchange
        self.received_bytes = 0
        self._body = body_of(head)
        self.state = BODY
        if not head.has_body:
            self.hold()
        exchange.start()
        if self._exchange is not exchange:
            return  # it was refused
        if not head.has_body:
            exchange.receive(b"", True)
        elif self.state is BODY:
            self._want_body(is_here=is_here)

    def _want_body(self, *, is_here: bool) -> None:
        if self.head.has_body:
            self.rate_samples = []
            self._connections.await_client(self, Wait.BODY)
            if not is_here and isinstance(self._exchange, HotExchange) and self.head.expects_continue:
                self.write(CONTINUE)
        elif self._exchange is not None:
            self.hold()
            self._exchange.receive(b"", True)

    def _read_body(self, data: bytes | bytearray, position: int) -> int:
        """Read more of the body; return the position after it."""
        start, body, exchange = position, self._body, self._exchange
        position = body.feed(data, position)
        content = body.take()
        self.received_bytes += position - start
        if body.is_complete:
            self.hold()
        else:
            self._connections.await_client(self, Wait.LINGER if exchange is None else Wait.BODY)
        if exchange is not None:
            exchange.receive(content, body.is_complete)
        elif body.is_complete:  # the rest of a refused body
            self.state = HEAD
            self._connections.await_client(self, Wait.REQUEST)
        if self.state is BODY and isinstance(self._exchange, HotExchange):
            self._read_long_body(self._exchange)
        return position

    def _read_long_body(self, exchange: HotExchange) -> None:
        """Have the rest of a body, if it is long and its length known, read straight into its place."""
        body = self._body
        is_begun = self.received_bytes >= _LONG_BODY_START_BYTES
        if is_begun and isinstance(body, SizedBody) and body.rest_bytes >= _LONG_BODY_BYTES:
            room = exchange.make_room(body.rest_bytes)
            if room is not None:
                self._long_body = LongBodyReader(self, self, self.transport, room)

    def long_body_received(self, count: int) -> None:
        """Take note of so many further bytes of a long body."""
        assert isinstance(self._body, SizedBody)
        self._known.turn.last_ended_at = 0.0
        self._body.skip(count)
        self.received_bytes += count
        self._connections.await_client(self, Wait.BODY)

    def next_room(self) -> memoryview | None:
        """Return where the next bytes of a long body are written; None if it is complete, or was refused."""
        assert isinstance(self._body, SizedBody)
        assert isinstance(self._exchange, HotExchange)
        return None if self._body.is_complete else self._exchange.make_room(self._body.rest_bytes)

    def long_body_ended(self) -> None:
        """Answer the request whose long body is complete, unless the client left."""
        self._long_body, exchange = None, self._exchange
        if exchange is not None and not self.transport.is_closing():
            self.hold()
            self.resume_reading()
            exchange.receive(b"", True)

    def _leave_long_body(self) -> None:
        if self._long_body is not None:
            self._long_body.stop()
            self._long_body = None

    def _fail(self, error: ViTError) -> None:
        """Refuse what can't be read on."""
        if self.state is BODY and self._exchange is not None:
            self._exchange.fail(error)
        elif self.state is BODY:
            self.close()
        else:
            self.refuse(error)
