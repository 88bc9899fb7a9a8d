"""The door on a real socket and event loop, in front of a scripted application."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
import uvloop
from uvicorn.server import ServerState

from vit_api.errors import Overloaded, UploadTooLarge, ViTError
from vit_api.web.door.answers import DateHeader
from vit_api.web.door.connections import Connections
from vit_api.web.door.head_cache import HeadCache
from vit_api.web.door.known_requests import KnownRequests, LoopTurn
from vit_api.web.door.limits import DoorLimits
from vit_api.web.door.protocol import Door
from vit_api.web.responses import Response, header_lines

MAX_BYTES = 300_000
FULL_BYTES = 280_000
"""Beyond it, memory is used up for requests with `full` in their query."""
REFUSED = b"refused"


class ScriptedRequest:
    """A request for `/hot`, whose query and body decide its outcome."""

    def __init__(self, bench: DoorBench, scope: dict[str, Any]) -> None:
        self.bench = bench
        self.scope = scope
        self.received = 0

    async def admit(self) -> None:
        query = self.scope["query_string"]
        if b"slow" in query:
            await asyncio.sleep(0.01)
        if b"refuse" in query:
            raise Overloaded("planted")
        declared = dict(self.scope["headers"]).get(b"content-length", b"0")
        if int(declared) > MAX_BYTES:
            raise UploadTooLarge(MAX_BYTES)

    def receive(self, count: int) -> None:
        self.received += count
        if self.received > MAX_BYTES:
            raise UploadTooLarge(MAX_BYTES)
        if b"full" in self.scope["query_string"] and self.received > FULL_BYTES:
            raise Overloaded("planted")

    async def handle(self, body: bytes) -> Response:
        if body.startswith(b"wait"):
            await self.bench.gate()
        elif body.startswith(b"task"):
            await asyncio.sleep(0)
        headers = [(name.decode(), value.decode()) for name, value in self.scope["headers"]]
        seen = [self.scope["method"], self.scope["path"], self.scope["query_string"].decode(), headers, body.hex()]
        return Response(200, json.dumps(seen).encode())

    def fail(self, error: ViTError) -> Response:
        headers = [(name.encode(), value.encode()) for name, value in error.headers().items()]
        return Response(error.status, json.dumps({"code": error.code}).encode(), headers)

    def find(self, body: bytes) -> Response | None:
        return None

    def find_whole(self, body: bytes) -> Response | None:
        return None

    def repeat(self, response: Response) -> None:
        return None

    def release(self) -> None:
        raise AssertionError("no request repeats another")

    async def answer(self, body: bytes) -> Response:
        try:
            await self.admit()
            self.receive(len(body))
        except ViTError as error:
            return self.fail(error)
        return await self.handle(body)

    def header_lines(self, response: Response) -> bytes:
        return header_lines([(b"content-length", b"%d" % len(response.body)), *response.headers])

    def end(self, response: Response | None) -> None:
        self.bench.ended.append(None if response is None else response.status)


class DoorBench:
    """A listening door.

    Attributes:
        port: The port that it listens on.
        ended: The status of each request for `/hot` and each malformed one; None if the client disconnected.
        evicted: The number of connections closed for lack of descriptors.
        connections: All its connections.
        most_at_once: How many requests were begun before the event loop had its next turn, at most.
        state: Uvicorn's state of the server.
    """

    def __init__(self, limits: DoorLimits) -> None:
        self.ended: list[int | None] = []
        self.evicted = 0
        self.most_at_once = 0
        self._at_once = 0
        self.draining = False
        self.connections = Connections(limits, lambda: self.draining, self._count_evicted)
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"now")]
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self._open_gate = False
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _count_evicted(self) -> None:
        self.evicted += 1

    def _reset_at_once(self) -> None:
        self._at_once = 0

    def open(self, scope: dict[str, Any]) -> ScriptedRequest | None:
        if self._at_once == 0:
            self._loop.call_soon(self._reset_at_once)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        return ScriptedRequest(self, scope) if scope["path"] == "/hot" and scope["method"] == "POST" else None

    def refuse(self, scope: dict[str, Any]) -> ScriptedRequest:
        return ScriptedRequest(self, scope)

    async def gate(self) -> None:
        while not self._open_gate:
            await asyncio.sleep(0.001)

    def open_gate(self) -> None:
        """Release the requests whose bodies begin with `wait`."""
        self._open_gate = True

    async def app(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[Any]]
    ) -> None:
        """Answer all other paths as an ASGI application; `/read` reads the body first."""
        body = b""
        if scope["path"] == "/read":
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message["body"]
                if not message["more_body"]:
                    break
        status = 200 if scope["path"] == "/read" else 404
        content = json.dumps([scope["method"], scope["path"], body.hex()]).encode()
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-length", b"%d" % len(content))],
            }
        )
        await send({"type": "http.response.body", "body": content})

    def call(self, work: Callable[[], Any]) -> Any:
        """Run a function on the event loop and return its result."""

        async def run() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def _serve(self) -> None:
        uvloop.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        config = uvicorn.Config(
            self.app, interface="asgi3", log_config=None, lifespan="off", ws="none", proxy_headers=False
        )
        config.load()
        make = functools.partial(
            Door,
            self,
            self.connections,
            DateHeader(),
            HeadCache(),
            KnownRequests(LoopTurn(lambda: self.connections.is_draining)),
            config=config,
            server_state=self.state,
            app_state={},
        )
        server = await self._loop.create_server(lambda: make(_loop=self._loop), sock=self._listener, backlog=512)
        self._is_up.set()
        await self._end.wait()
        server.close()
        for connection in list(self.state.connections):
            connection.abort()
        await asyncio.sleep(0.01)

    def __enter__(self) -> DoorBench:
        self._thread.start()
        assert self._is_up.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)

    def connect(self) -> socket.socket:
        """Return a new connection."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def exchange(self, *parts: bytes, half_close: bool = True) -> bytes:
        """Send each part in its own packet, and return everything received until the connection is closed."""
        with self.connect() as connection:
            with contextlib.suppress(OSError):
                for part in parts:
                    connection.sendall(part)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Return everything received until the connection is closed."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def split_answers(received: bytes) -> Iterator[tuple[int, dict[bytes, bytes], bytes]]:
    """Yield the status, headers and body of each response; each must have a Content-Length."""
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
        length = int(headers.get(b"content-length", b"0"))
        yield int(line.split()[1]), headers, received[:length]
        received = received[length:]


def statuses(received: bytes) -> list[int]:
    """Return the statuses of all responses."""
    return [status for status, _, _ in split_answers(received)]
