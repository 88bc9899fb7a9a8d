"""A Hugging Face hub on the loopback interface, with one repository and failures on demand."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "somebody/vit-tiny"
FIRST, SECOND = "1" * 40, "2" * 40


class FakeHub(ThreadingHTTPServer):
    """Serves one repository.

    Attributes:
        commits: The files of each commit.
        refs: The commit of each branch or tag.
        requests: The paths of all requests.
        refusal: Status and error code of every response, if set.
        file_refusal: The same for files only.
        weights_take_s: How long the download of the weights takes.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.requests: list[str] = []
        self.refusal: tuple[int, str] | None = None
        self.file_refusal: tuple[int, str] | None = None
        self.weights_take_s = 0.0

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def requested_files(self) -> set[str]:
        """Return the names of the files that were looked up or downloaded."""
        return {path.rsplit("/", 1)[1] for path in self.requests if "/resolve/" in path}


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server
        hub.requests.append(self.path)
        if hub.refusal:
            return self.refuse(*hub.refusal)
        path = self.path.split("?")[0]
        if path.startswith(f"/api/models/{NAME}/revision/"):
            return self.list_files(path.rsplit("/", 1)[1])
        if path.startswith(f"/{NAME}/resolve/"):
            revision, file = path.removeprefix(f"/{NAME}/resolve/").split("/")
            return self.send_file(revision, file)
        return self.refuse(404, "RepoNotFound")

    def list_files(self, revision: str) -> None:
        commit = self.server.refs.get(revision, revision)
        if commit not in self.server.commits:
            return self.refuse(404, "RevisionNotFound")
        files = [{"rfilename": file} for file in self.server.commits[commit]]
        return self.answer(json.dumps({"id": NAME, "sha": commit, "siblings": files}).encode())

    def send_file(self, revision: str, file: str) -> None:
        commit = self.server.refs.get(revision, revision)
        if self.server.file_refusal:
            return self.refuse(*self.server.file_refusal)
        content = self.server.commits[commit].get(file)
        if content is None:
            return self.refuse(404, "EntryNotFound")
        return self.answer(content, {"ETag": f'"{commit}-{file}"', "X-Repo-Commit": commit})

    def refuse(self, status: int, code: str) -> None:
        self.answer(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status)

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for header, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        parts = 10
        for index in range(parts):
            if "model.safetensors" in self.path:
                threading.Event().wait(self.server.weights_take_s / parts)
            self.wfile.write(body[len(body) * index // parts : len(body) * (index + 1) // parts])
            self.wfile.flush()


@contextlib.contextmanager
def hub_server(files: dict[str, bytes]) -> Iterator[FakeHub]:
    """Run a hub with one commit on its main branch: these files, and some that must not be downloaded."""
    server = FakeHub()
    server.commits[FIRST] = {**files, "pytorch_model.bin": b"never", "README.md": b"text", "onnx.safetensors": b"no"}
    server.refs["main"] = FIRST
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
