"""A fake hub with one Space on the loopback interface, with the endpoints that `huggingface_hub` uses."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import parse_qs

from tests.support.fake_hugging_face import FakeHuggingFace, HubHandler, Response

NAME = "org/space"
Tree = dict[str, bytes]


class FakeSpace(FakeHuggingFace):
    """A hub with one Space.

    Attributes:
        commits: The files of each revision, oldest first; `titles` has the revisions' titles.
        stages: The stages that the hub reports after each of the next pushes, in order.
        application: Returns the application's status and body for a path, given the files of the running revision.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.commits: dict[str, Tree] = {}
        self.titles: list[str] = []
        self.large: dict[str, bytes] = {}
        self.stages: deque[list[str]] = deque()
        self.pending: deque[str] = deque()
        self.stage, self.running = "NO_APP_FILE", ""
        self.is_private = False
        self.application: Callable[[str, Tree], Response] = _classify
        self.commit({".gitattributes": b"*.safetensors filter=lfs\n", "README.md": b"---\nsdk: docker\n---\n"}, "first")

    def respond(self, path: str, headers: dict[str, str]) -> Response:
        """Return the application's response."""
        return self.application(path, self.commits.get(self.running, {}))

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


def _classify(path: str, _: Tree) -> Response:
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


class _Handler(HubHandler):
    server: FakeSpace
    calls: ClassVar[list[tuple[str, Callable[..., None]]]] = []
    public = "/large/"
    not_found = {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}

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


_API = f"/api/spaces/{NAME}"
_Handler.calls += [
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
