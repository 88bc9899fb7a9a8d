"""A fake hub of Hugging Face on the loopback interface: what its Spaces and Endpoints have in common."""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_secret-of-this-test"
JOB_TOKEN, ID_TOKEN = "token-of-the-job", "id-token-of-the-job"
SHORT_LIVED = "hf_jwt_short-lived"
Response = tuple[int, object]


class FakeHuggingFace(ThreadingHTTPServer):
    """The hub's API, the deployed application under `/app`, and the tokens of trusted publishers.

    Attributes:
        failures: The statuses of the next responses for a path; 0 closes the connection.
        requests: Method and path of all requests to the hub.
        tokens: The tokens that the hub accepts.
        trusted: The repository whose trusted publisher the job is, or empty.
        exchanges: How often the hub gave a token to the job.
        expires_s: The lifetime of these tokens.
    """

    daemon_threads = True

    def __init__(self, handler: type[HubHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"{self.endpoint}/app"
        self.failures: dict[str, deque[int]] = {}
        self.requests: list[str] = []
        self.tokens = {TOKEN}
        self.trusted, self.exchanges, self.expires_s = "", 0, 3600
        self.short_lived: deque[str] = deque(maxlen=5)  # older ones have expired
        self.seen_by_application: list[dict[str, str]] = []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def job(self) -> dict[str, str]:
        """The variables that GitHub sets in a job with the permission `id-token: write`."""
        address = f"{self.endpoint}/github/token?api-version=2.0"
        return {
            "GITHUB_ACTIONS": "true",
            "ACTIONS_ID_TOKEN_REQUEST_URL": address,
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": JOB_TOKEN,
        }

    def respond(self, path: str, headers: dict[str, str]) -> Response:
        """Return the application's response, or that of the hub's proxy before it."""
        raise NotImplementedError


H = TypeVar("H", bound=FakeHuggingFace)


@contextmanager
def running(hub: H) -> Iterator[H]:
    """Run a hub until the context ends."""
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class HubHandler(BaseHTTPRequestHandler):
    """Answers requests; subclasses list the hub's calls, by patterns of their paths."""

    server: FakeHuggingFace
    calls: ClassVar[list[tuple[str, Callable[..., None]]]]
    public: ClassVar[str] = "(?!)"
    not_found: ClassVar[tuple[dict[str, str], dict[str, str]]]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.read_chunks()
        path = unquote(self.path.split("?")[0])
        with self.server.lock:
            if path.startswith("/app/"):
                self.server.seen_by_application.append(dict(self.headers))
                return self.answer(*self.server.respond(path.removeprefix("/app"), dict(self.headers)))
            self.server.requests.append(f"{self.command} {path}")
            if failures := self.server.failures.get(path):
                status = failures.popleft()
                return self.answer(status, {"error": "on purpose"}) if status else self.hang_up()
            if path == "/github/token":
                return self.identify()
            if path == "/oauth/token":
                return self.exchange(json.loads(body))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token not in self.server.tokens and not re.match(self.public, path):
                return self.answer(401, {"error": "Invalid username or password."})
            return self.dispatch(path, body)

    do_POST = do_PUT = do_GET

    def dispatch(self, path: str, body: bytes) -> None:
        for pattern, function in self.calls:
            if match := re.fullmatch(pattern, path):
                return function(self, body, *match.groups())
        return self.answer(404, *self.not_found)

    def identify(self) -> None:
        """Give the job its id token, as GitHub does."""
        audience = parse_qs(urlsplit(self.path).query)["audience"]
        is_the_job = self.headers.get("Authorization") == f"Bearer {JOB_TOKEN}"
        if not is_the_job or audience != [self.server.endpoint]:
            return self.answer(401, {"message": "bad request"})
        return self.answer(200, {"value": ID_TOKEN})

    def exchange(self, wanted: dict[str, str]) -> None:
        """Give the job a token for one repository (RFC 8693)."""
        hub = self.server
        is_exchange = wanted["grant_type"] == "urn:ietf:params:oauth:grant-type:token-exchange"
        is_known = is_exchange and wanted["subject_token"] == ID_TOKEN
        if not is_known or wanted["resource"] != hub.trusted:
            return self.answer(400, {"error": "invalid_grant", "error_description": "No trusted publisher matches"})
        hub.exchanges += 1
        token = f"{SHORT_LIVED}-{hub.exchanges}"
        hub.short_lived.append(token)
        hub.tokens = {*hub.short_lived}
        return self.answer(200, {"access_token": token, "token_type": "bearer", "expires_in": hub.expires_s})

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def hang_up(self) -> None:
        self.close_connection = True

    def answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(body).encode(), headers)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
