"""Responses of a server that is starting: alive, not ready, and everything else refused until it is.

Imports little, since it is used within the first second. Knows nothing of processes.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import socket
from email.utils import formatdate

from vit_api.errors import NotReady, ViTError
from vit_api.web.problem_details import PROBLEM_JSON, prefers_problem, problem_of

_MAX_HEAD_BYTES = 64 * 1024
_PIECE_BYTES = 256 * 1024
_SILENCE_S = 5.0
_MAX_DISCARD_S = 60.0
_JSON = b"application/json"
_READY_PATHS = ("/health", "/health/ready")
_LIVE_PATH = "/health/live"
_PHRASES = {200: b"OK", 503: b"Service Unavailable"}


class StartingAnswers:
    """Answer connections while the server starts.

    Args:
        model: The name of the model that clients see.
        head_timeout_s: Time limit for receiving the headers, in seconds.
    """

    def __init__(self, model: str, head_timeout_s: float) -> None:
        self._model = model
        self._head_timeout_s = head_timeout_s

    async def answer(self, connection: socket.socket, reason: str) -> None:
        """Answer one request and end the connection, so that the next request finds the server itself.

        Args:
            connection: A connected, non-blocking socket.
            reason: Why the server is not ready: a sentence for operators and clients.

        Raises:
            OSError: The client is gone.
            TimeoutError: It sends no request, or its body does not end.
        """
        async with asyncio.timeout(self._head_timeout_s):
            head = await _read_head(connection)
        if head is not None:
            await asyncio.get_running_loop().sock_sendall(connection, self.respond(head, reason))
            connection.shutdown(socket.SHUT_WR)
            await _discard(connection)

    def respond(self, head: bytes, reason: str) -> bytes:
        """Return the response to a request with the given request line and headers."""
        request_line, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = request_line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        is_probe = method in ("GET", "HEAD")
        if is_probe and path == _LIVE_PATH:
            response = _response(200, {"status": "alive"}, headers)
        elif is_probe and path in _READY_PATHS:
            response = _response(503, self._health(reason), headers, retry_after_s=NotReady.retry_after_s)
        else:
            response = _error(NotReady(f"{reason} Retry shortly."), headers)
        return response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else response

    def _health(self, reason: str) -> dict[str, object]:
        return {
            "status": "starting",
            "model_loaded": False,
            "gpu_available": False,
            "device": "",
            "model": self._model,
            "workers": 0,
            "workers_ready": 0,
            "reason": reason,
        }


async def _read_head(connection: socket.socket) -> bytes | None:
    """Return the request line and the headers; None if the client sends none, or too many."""
    loop, head = asyncio.get_running_loop(), b""
    while b"\r\n\r\n" not in head:
        piece = await loop.sock_recv(connection, _PIECE_BYTES)
        head += piece
        if not piece or len(head) > _MAX_HEAD_BYTES + _PIECE_BYTES:
            return None
    return head.partition(b"\r\n\r\n")[0].lstrip(b"\r\n")


async def _discard(connection: socket.socket) -> None:
    """Read what the client still sends: closing a socket with unread data resets it, and the response may be lost."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_MAX_DISCARD_S):
        while await asyncio.wait_for(loop.sock_recv(connection, _PIECE_BYTES), _SILENCE_S):
            pass


def _error(error: ViTError, headers: dict[str, str]) -> bytes:
    """Return an error response in the form of `web.responses`."""
    request_id = _request_id(headers)
    body: dict[str, object] = {"error": error.message, "code": error.code, "request_id": request_id}
    content_type = _JSON
    if prefers_problem(headers.get("accept", "").encode("latin-1")):
        body, content_type = problem_of(error, {key: str(value) for key, value in body.items()}), PROBLEM_JSON
    return _response(
        error.status,
        body,
        headers,
        retry_after_s=error.retry_after_s,
        content_type=content_type,
        request_id=request_id,
    )


def _response(
    status: int,
    body: object,
    headers: dict[str, str],
    *,
    retry_after_s: int | None = None,
    content_type: bytes = _JSON,
    request_id: str = "",
) -> bytes:
    content = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    lines = [
        b"HTTP/1.1 %d %b" % (status, _PHRASES[status]),
        b"date: " + formatdate(usegmt=True).encode(),
        b"content-type: " + content_type,
        b"x-content-type-options: nosniff",
        b"content-length: %d" % len(content),
        b"x-request-id: " + (request_id or _request_id(headers)).encode("latin-1"),
        b"connection: close",
    ]
    if retry_after_s is not None:
        lines.append(b"retry-after: %d" % retry_after_s)
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


_CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def _request_id(headers: dict[str, str]) -> str:
    """Return the client's id for the request if it is a plain one, or else a new one."""
    client_id = headers.get("x-request-id", "")
    return client_id if _CLIENT_ID.fullmatch(client_id) else secrets.token_hex(8)
