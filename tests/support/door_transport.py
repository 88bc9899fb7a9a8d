"""An httpx transport to an application without sockets: hot routes as through the door, others over ASGI."""

from __future__ import annotations

from typing import Any

import httpx

from vit_api.web.application import WebApplication


class DoorTransport(httpx.AsyncBaseTransport):
    """A transport to an application.

    Args:
        application: The application that answers the requests.
    """

    def __init__(self, application: WebApplication) -> None:
        self._application = application
        self._asgi = httpx.ASGITransport(application)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "server": ("test", 80),
            "client": ("127.0.0.1", 123),
            "scheme": "http",
            "method": request.method,
            "path": request.url.path,
            "query_string": request.url.query,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
        }
        call = self._application.entry.open(scope)
        if call is None:
            return await self._asgi.handle_async_request(request)
        body = await request.aread()
        response = call.find_whole(body) or await call.answer(body)
        headers = [(name, value) for name, _, value in _split(call.header_lines(response))]
        call.end(response)
        return httpx.Response(response.status, headers=headers, content=response.body)


def _split(lines: bytes) -> list[tuple[bytes, bytes, bytes]]:
    return [line.partition(b": ") for line in lines.splitlines()]
