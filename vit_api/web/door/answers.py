"""Answers as bytes: the status line, the headers and the body. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

ANSWER_START = b"HTTP/1.1 "
"""What every answer begins with."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
KEEP_ALIVE = b"connection: keep-alive\r\n"
"""For clients of HTTP/1.0, which don't expect it."""
CLOSE = b"connection: close\r\n"

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_STATUS_LINES = {
    status: b"%s%d %s\r\n" % (ANSWER_START, status, _REASONS.get(status, "").encode()) for status in range(200, 600)
}


OK = _STATUS_LINES[200]


class DateHeader:
    """The headers that all answers have, rendered once for each list of them that uvicorn makes, every second.

    Attributes:
        headers: The list.
        ok: The start of an answer with the status 200.
    """

    def __init__(self) -> None:
        self.headers: Sequence[tuple[bytes, bytes]] = ()
        self.ok = OK
        self._rendered = b""

    def render(self, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Return the headers as lines."""
        if headers is not self.headers:
            self.headers = headers
            self._rendered = b"".join(b"%s: %s\r\n" % header for header in headers)
            self.ok = OK + self._rendered
        return self._rendered


def render(status: int, common: bytes, headers: bytes, connection: bytes, body: bytes) -> bytes:
    """Return an answer.

    Args:
        status: The HTTP status.
        common: The lines of headers that all answers have.
        headers: The lines of further headers, trusted to be well-formed.
        connection: The line of the `Connection` header; empty if there is none.
        body: The body, whose length the headers have.
    """
    return b"".join((_STATUS_LINES[status], common, headers, connection, b"\r\n", body))
