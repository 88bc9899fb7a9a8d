"""A small HTTP server for tests of the client, which responds, resets and stalls as scripted."""

from __future__ import annotations

import contextlib
import enum
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

ANSWER: dict[str, Any] = {
    "predictions": [{"label": "7", "confidence": 0.9}, {"label": "1", "confidence": 0.1}],
    "cached": False,
    "processing_time_ms": 3.5,
    "model": "digits",
}


class Fault(enum.Enum):
    """A fault instead of a response."""

    RESET = enum.auto()  # the connection is reset
    SILENCE = enum.auto()  # nothing is sent until the client disconnects


@dataclass(frozen=True)
class Request:
    """One received request; header names are in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes


Reply = bytes | Fault
Handler = Callable[[Request], Reply]


def reply(status: int, body: Any = None, **headers: str) -> bytes:
    """Return an HTTP response with a JSON body, or the body itself if it is bytes. `_` in header names means `-`."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} x", f"content-length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def ok(**headers: str) -> bytes:
    """Return the response to a valid image."""
    return reply(200, ANSWER, **headers)


def error(status: int, code: str, **headers: str) -> bytes:
    """Return an error response in this API's form."""
    return reply(status, {"error": "what is wrong", "code": code, "request_id": "id-1"}, **headers)


def in_turn(*replies: Reply) -> Handler:
    """Return a handler that gives each request the next reply."""
    rest = iter(replies)
    return lambda _: next(rest)


class ScriptedServer:
    """A server that records its requests.

    Attributes:
        url: Its base address.
        requests: The requests received.
        max_in_flight: The maximum number of requests in flight at the same time.
        connections: The number of connections accepted.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._in_flight = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[Request] = []
        self.max_in_flight = 0
        self.connections = 0
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._sockets.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file, contextlib.suppress(OSError):
            while request := _read(file):
                with self._lock:
                    self.requests.append(request)
                    self._in_flight += 1
                    self.max_in_flight = max(self.max_in_flight, self._in_flight)
                answer = self._handler(request)
                with self._lock:
                    self._in_flight -= 1
                if isinstance(answer, bytes):
                    connection.sendall(answer)
                elif answer is Fault.RESET:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return

    def close(self) -> None:
        """Close all connections and join the threads."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)


def _read(file: Any) -> Request | None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = file.readline()
        if not line:
            return None
        head += line
    first, *rest = head.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    return Request(first, headers, file.read(int(headers["content-length"])))


@contextlib.contextmanager
def scripted(*replies: Reply, handler: Handler | None = None) -> Iterator[ScriptedServer]:
    """Run a server that sends these replies in turn, or those of a handler."""
    server = ScriptedServer(handler or in_turn(*replies))
    try:
        yield server
    finally:
        server.close()
