"""A fake hub with one Space on the loopback interface, with the endpoints that `huggingface_hub` uses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

NAME = "org/space"
TOKEN = "hf_secret-of-this-test"
Tree = dict[str, bytes]


class FakeSpace(ThreadingHTTPServer):
    """The hub's API under `/api` and the application under `/app`.

    Attributes:
        commits: The files of each revision, oldest first; `titles` has the revisions' titles.
        stages: The stages that the hub reports after each of the next pushes, in order.
        application: Returns the application's status and body for a path, given the files of the running revision.
        failures: The statuses of the next responses for a path; 0 closes the connection.
        requests: Method and path of all requests to the hub.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, Tree] = {}
        self.titles: list[str] = []
        self.large: dict[str, bytes] = {}
        self.stages: deque[list[str]] = deque()
        self.pending: deque[str] = deque()
        self.stage, self.running = "NO_APP_FILE", ""
        self.is_private = False
        self.url = f"{self.endpoint}/app"
        self.application: Callable[[str, Tree], tuple[int, object]] = _classify
        self.failures: dict[str, deque[int]] = {}
        self.requests: list[str] = []
        self.seen_by_application: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.commit({".gitattributes": b"*.safetensors filter=lfs\n", "README.md": b"---\nsdk: docker\n---\n"}, "first")

    @property
    def endpoint(self) -> str:
        """The value for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def head(self) -> str:
        """The newest revision."""
        return list(self.commits)[-1]

    @property
    def files(self) -> Tree:
        """The newest revision's files."""
        return self.commits[self.head]

    def commit(self, tree: Tree, title: str) -> str:
        """Add a revision without building it."""
        revision = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[revision] = tree
        self.large |= {hashlib.sha256(tree[name]).hexdigest(): tree[name] for name in filter(_is_large, tree)}
        self.titles.append(title)
        return revision

    def run(self, tree: Tree) -> str:
        """Add a revision and run it."""
        self.running, self.stage = self.commit(tree, "earlier"), "RUNNING"
        return self.running

    def push(self, tree: Tree, title: str) -> str:
        """Add a revision as a client does, which starts a build."""
        revision = self.commit(tree, title)
        self.pending = deque(self.stages.popleft() if self.stages else ["BUILDING", "APP_STARTING", "RUNNING"])
        return revision

    def runtime(self) -> dict[str, Any]:
        """Advance to the next stage and return it."""
        if self.pending:
            self.stage = self.pending.popleft()
            if self.stage == "RUNNING":
                self.running = self.head
        return {"stage": self.stage, "hardware": {"current": "t4-small"}, "sha": self.running or None}


def _classify(path: str, _: Tree) -> tuple[int, object]:
    return 200, {"predictions": [{"label": "7", "confidence": 0.9}]} if path == "/predict" else {"status": "ready"}


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def blob_id(content: bytes) -> str:
    """Return a file's id in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _describe(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}
    if _is_large(name):
        sha256 = hashlib.sha256(content).hexdigest()
        entry |= {"oid": blob_id(sha256.encode()), "lfs": {"oid": sha256, "size": len(content), "pointerSize": 130}}
    return entry


class _Handler(BaseHTTPRequestHandler):
    server: FakeSpace
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
                tree = self.server.commits.get(self.server.running, {})
                return self.answer(*self.server.application(path.removeprefix("/app"), tree))
            self.server.requests.append(f"{self.command} {path}")
            if failures := self.server.failures.get(path):
                status = failures.popleft()
                return self.answer(status, {"error": "on purpose"}) if status else self.hang_up()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not path.startswith("/large/"):
                return self.answer(401, {"error": "Invalid username or password."})
            return self.dispatch(path, body)

    do_POST = do_PUT = do_GET

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def dispatch(self, path: str, body: bytes) -> None:
        for pattern, function in _CALLS:
            if match := pattern.fullmatch(path):
                return function(self, body, *match.groups())
        return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def store(self, body: bytes, oid: str) -> None:
        self.server.large[oid] = body
        self.answer(200, {})

    def validate(self, _: bytes) -> None:
        self.answer(200, {})

    def info(self, _: bytes) -> None:
        hub = self.server
        self.answer(200, {"id": NAME, "sha": hub.head, "private": hub.is_private, "host": hub.url})

    def runtime(self, _: bytes) -> None:
        self.answer(200, self.server.runtime())

    def upload(self, body: bytes) -> None:
        objects = json.loads(body)["objects"]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{self.server.endpoint}/large/{item['oid']}"}}
        self.answer(200, {"objects": objects})

    def resolve(self, _: bytes, revision: str, name: str) -> None:
        self.send(200, self.at(revision)[name])

    def at(self, revision: str) -> Tree:
        return self.server.files if revision == "main" else self.server.commits[revision]

    def tree(self, _: bytes, revision: str) -> None:
        tree = self.at(revision)
        folders = {name.rpartition("/")[0] for name in tree if "/" in name}
        entries = [{"type": "directory", "path": name, "oid": "0" * 40} for name in sorted(folders)]
        self.answer(200, entries + [_describe(name, content) for name, content in tree.items()])

    def preupload(self, body: bytes, _: str) -> None:
        files = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if _is_large(file["path"]) else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self.answer(200, {"files": files})

    def paths(self, body: bytes, revision: str) -> None:
        tree = self.at(revision)
        names = parse_qs(body.decode())["paths"]
        self.answer(200, [_describe(name, tree[name]) for name in names if name in tree])

    def commit(self, body: bytes) -> None:
        hub = self.server
        header, *operations = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit") != hub.head:
            return self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        tree = dict(hub.files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                tree[value["path"]] = hub.large[value["oid"]]
            else:
                assert operation["key"] == "deletedFile"
                del tree[value["path"]]
        revision = hub.push(tree, header["value"]["summary"])
        url = f"{hub.endpoint}/spaces/{NAME}/commit/{revision}"
        return self.answer(200, {"commitUrl": url, "commitOid": revision})

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


_API = f"/api/spaces/{NAME}"
_CALLS: list[tuple[re.Pattern[str], Callable[..., None]]] = [
    (re.compile(pattern), function)
    for pattern, function in [
        (_API, _Handler.info),
        (f"{_API}/runtime", _Handler.runtime),
        (f"{_API}/tree/(.+)", _Handler.tree),
        (f"{_API}/preupload/(.+)", _Handler.preupload),
        (f"{_API}/paths-info/(.+)", _Handler.paths),
        (f"{_API}/commit/main", _Handler.commit),
        (f"/spaces/{NAME}.git/info/lfs/objects/batch", _Handler.upload),
        (f"/spaces/{NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
        ("/large/(.+)", _Handler.store),
        ("/api/validate-yaml", _Handler.validate),
    ]
]
