"""A proxy that serves another server behind a path prefix, and a page that frames it, as Hugging Face Spaces do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from benchmarks.harness.servers import PLAIN_HTTP

PREFIX = "/some/where"
FRAME_PATH = "/frame"

_SANDBOX = "allow-downloads allow-forms allow-modals allow-popups allow-same-origin allow-scripts"
_FRAME = (
    f'<!doctype html><title>Frame</title><iframe sandbox="{_SANDBOX}" width="800" height="800" src="{{}}"></iframe>'
)
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "date", "server"}


def _handler(target: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path == FRAME_PATH:
                self._answer(200, {"content-type": "text/html"}, _FRAME.format(query).encode())
            else:
                self._forward()

        def do_POST(self) -> None:
            self._forward()

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if not self.path.startswith(PREFIX + "/"):
                self._answer(404, {"content-type": "text/plain"}, b"outside the prefix")
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            url = target + self.path.removeprefix(PREFIX)
            answer = httpx.request(self.command, url, content=body, headers=headers, timeout=30, **PLAIN_HTTP)
            kept = {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP}
            self._answer(answer.status_code, kept, answer.content)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in (headers | {"content-length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def prefix_proxy(target: str) -> Iterator[str]:
    """Run the proxy until the context ends; yield its address without the prefix."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(target))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
