"""Which files of this repository the image is built from. Knows nothing of where they go."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

NEEDED = (
    ".dockerignore",
    "Dockerfile",
    "README.md",
    "deploy/healthcheck.py",
    "requirements.txt",
    "server.py",
    "vit_api",
)
"""What the builder gets by `.dockerignore`, what tells it how to build, and the page with the Space's settings."""


class FilesError(Exception):
    """The working tree can't be deployed; the message says why and what to do."""


@dataclass(frozen=True)
class LocalFile:
    """A file of the working tree.

    Attributes:
        name: Its path in the repository, with slashes.
        path: Where it is.
    """

    name: str
    path: Path

    def is_same(self, blob_id: str, sha256: str | None) -> bool:
        """Say whether a file of the hub has this content.

        Args:
            blob_id: That file's id in git.
            sha256: Its content's SHA-256 if it is in large-file storage, where the id in git is of a pointer.
        """
        content = self.path.read_bytes()
        if sha256 is not None:
            return hashlib.sha256(content).hexdigest() == sha256
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == blob_id


def image_files(root: Path) -> list[LocalFile]:
    """List the files that the image needs: those that git tracks, as the working tree has them.

    Raises:
        FilesError: One is missing, or there are files among them that git doesn't know: a new module that was
            forgotten, or something private. Or this is no git repository.
    """
    if missing := [name for name in NEEDED if not (root / name).exists()]:
        raise FilesError(f"the image needs {', '.join(missing)}, which {root} does not have")
    if strangers := _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *NEEDED).split("\0")[:-1]:
        raise FilesError(f"git does not know {', '.join(strangers)}: add them, or delete them")
    names = _git(root, "ls-files", "-z", "--", *NEEDED).split("\0")[:-1]
    return [LocalFile(name, root / name) for name in sorted(set(names)) if (root / name).is_file()]


def describe_commit(root: Path) -> str:
    """Name the commit that is checked out, and say if the files that the image needs differ from it.

    Raises:
        FilesError: This is no git repository, or it has no commit.
    """
    commit = _git(root, "rev-parse", "--short=12", "HEAD").strip()
    is_changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *NEEDED)
    return f"{commit} with uncommitted changes" if is_changed else commit


def _git(root: Path, *arguments: str) -> str:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise FilesError("git is not installed") from None
    except subprocess.CalledProcessError as error:
        raise FilesError(f"git {arguments[0]} fails: {error.stderr.strip()}") from None
