"""A small HTTP server for tests of the client, which answers, breaks and stalls as a test says."""

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
    """What else than an answer a request may get."""

    RESET = enum.auto()  # the connection is reset
    SILENCE = enum.auto()  # nothing comes until the client leaves


@dataclass(frozen=True)
class Request:
    """One request as it arrived; header names are in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes


Reply = bytes | Fault
Handler = Callable[[Request], Reply]


def reply(status: int, body: Any = None, **headers: str) -> bytes:
    """An HTTP response; what is not bytes is sent as JSON. Underscores in headers' names stand for hyphens."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} x", f"content-length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def ok(**headers: str) -> bytes:
    """The answer to a good image."""
    return reply(200, ANSWER, **headers)


def error(status: int, code: str, **headers: str) -> bytes:
    """Return an error response in this API's form."""
    return reply(status, {"error": "what is wrong", "code": code, "request_id": "id-1"}, **headers)


def in_turn(*replies: Reply) -> Handler:
    """Give each request the next one."""
    rest = iter(replies)
    return lambda _: next(rest)


class ScriptedServer:
    """The server.

    Attributes:
        url: Its address.
        requests: What arrived.
        most_at_once: The maximum number of requests in flight at the same time.
        connections: How many were made.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._at_once = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[Request] = []
        self.most_at_once = 0
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
                    self._at_once += 1
                    self.most_at_once = max(self.most_at_once, self._at_once)
                answer = self._handler(request)
                with self._lock:
                    self._at_once -= 1
                if isinstance(answer, bytes):
                    connection.sendall(answer)
                elif answer is Fault.RESET:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return

    def close(self) -> None:
        """Close all connections and wait for the threads."""
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
    """Run a server that gives requests these replies in turn, or those of a handler."""
    server = ScriptedServer(handler or in_turn(*replies))
    try:
        yield server
    finally:
        server.close()
