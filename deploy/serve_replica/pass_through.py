"""Passes requests on to a server as they come, and its responses back. Knows nothing of Ray, or of what is in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

FindUrl = Callable[[float], Awaitable[str | None]]

_TRIES = 3
_WAIT_S = 25.0
"""Less than VIT_API_REQUEST_TIMEOUT_S, after which a server gives up a request itself."""
_NOTICE_S = 0.2
"""After a broken connection: the time in which the server's end is noticed, if that was the reason."""
_OF_THE_CONNECTION = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
"""Headers that concern one connection only; RFC 9110, section 7.6.1."""
_SET_BY_RAY = frozenset({b"date", b"server", b"x-request-id"})
"""Ray adds these to each response; it gave the server the request's id in the first place."""
_WITHOUT_DEFAULTS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_UNAVAILABLE = json.dumps(
    {"error": "The server is being restarted. Send the request again.", "code": "not_ready", "request_id": None}
).encode()


class _ClientLeft(Exception):
    """The client closed the connection before its request was complete."""


def new_session() -> aiohttp.ClientSession:
    """Return a session for `pass_through`: it changes nothing, limits nothing, and waits as long as the server does."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        auto_decompress=False,
        skip_auto_headers=_WITHOUT_DEFAULTS,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


async def pass_through(
    session: aiohttp.ClientSession, find_url: FindUrl, scope: Message, receive: Receive, send: Send
) -> None:
    """Send a request on to the server and stream its response back.

    A request whose body came at once is sent again if the server dies before its response begins: a classification may
    be repeated. Any other request then gets a 503 that says to try again, and so do all if there is no server in time.

    Args:
        session: See `new_session`.
        find_url: Returns the server's address within the given seconds, or None.
        scope: The request, as ASGI has it.
        receive: Returns the rest of the request.
        send: Takes the response.
    """
    first = await receive()
    if first["type"] == "http.disconnect":
        return
    is_whole = not first.get("more_body")
    body = (first.get("body") or None) if is_whole else _rest_of(first, receive)
    for _ in range(_TRIES if is_whole else 1):
        url = await find_url(_WAIT_S)
        if url is None:
            break
        target = URL(url + _target(scope), encoded=True)
        headers = _request_headers(scope)
        try:
            response = await session.request(scope["method"], target, headers=headers, data=body, allow_redirects=False)
        except _ClientLeft:
            return
        except (aiohttp.ClientError, OSError):
            await asyncio.sleep(_NOTICE_S)
            continue
        async with response:
            await _stream_back(response, send)
        return
    await _refuse(send)


async def _stream_back(response: aiohttp.ClientResponse, send: Send) -> None:
    """Stream a response; if it breaks, the exception breaks the client's, which must not take it for whole."""
    received = ((name.lower(), value) for name, value in response.raw_headers)
    headers = _end_to_end((name, value) for name, value in received if name not in _SET_BY_RAY)
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    async for chunk in response.content.iter_any():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _target(scope: Message) -> str:
    """Return path and query, as the client wrote them."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    root: bytes = scope.get("root_path", "").encode()
    query: bytes = scope.get("query_string", b"")
    path = path.removeprefix(root) or b"/"
    return (path + (b"?" + query if query else b"")).decode("latin-1")


def _request_headers(scope: Message) -> CIMultiDict[str]:
    headers = CIMultiDict(
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in _end_to_end(scope["headers"])
    )
    if scope.get("client"):
        addresses = [*headers.popall("x-forwarded-for", []), scope["client"][0]]
        headers["X-Forwarded-For"] = ", ".join(addresses)
    return headers


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    all_headers = list(headers)
    named = {name.strip().lower() for key, value in all_headers if key == b"connection" for name in value.split(b",")}
    return [(name, value) for name, value in all_headers if name not in _OF_THE_CONNECTION and name not in named]


async def _rest_of(first: Message, receive: Receive) -> AsyncIterator[bytes]:
    message = first
    while True:
        if message["type"] == "http.disconnect":
            raise _ClientLeft
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return
        message = await receive()


async def _refuse(send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
    headers.append((b"content-length", str(len(_UNAVAILABLE)).encode()))
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": _UNAVAILABLE})
