"""Lists the files of this repository that the image is built from. Must not know where they are pushed."""

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
"""What `.dockerignore` lets through, the files that control the build, and README.md with the Space's settings."""


class FilesError(Exception):
    """The working tree can't be deployed; the message says why, and what to do."""


@dataclass(frozen=True)
class LocalFile:
    """A file of the working tree.

    Attributes:
        name: Its path in the repository, with slashes.
        path: Its path on disk.
    """

    name: str
    path: Path

    def is_same(self, blob_id: str, sha256: str | None) -> bool:
        """Return whether a file on the hub has this content.

        Args:
            blob_id: The git blob id of the file on the hub.
            sha256: Its SHA-256 if it is in large-file storage, where the blob id is that of a pointer.
        """
        content = self.path.read_bytes()
        if sha256 is not None:
            return hashlib.sha256(content).hexdigest() == sha256
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == blob_id


def image_files(root: Path) -> list[LocalFile]:
    """Return the files that the image needs: those that git tracks, with the content of the working tree.

    Raises:
        FilesError: A file is missing, `root` is not a git repository, or git does not track a file in these folders:
            a forgotten new module, or something private.
    """
    if missing := [name for name in NEEDED if not (root / name).exists()]:
        raise FilesError(f"The image needs files that are missing in {root}: {', '.join(missing)}.")
    if untracked := _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *NEEDED).split("\0")[:-1]:
        raise FilesError(f"There are files that git does not track: add or delete {', '.join(untracked)}.")
    names = _git(root, "ls-files", "-z", "--", *NEEDED).split("\0")[:-1]
    return [LocalFile(name, root / name) for name in sorted(set(names)) if (root / name).is_file()]


def describe_commit(root: Path) -> str:
    """Return the id of the commit that is checked out, with a note if the image's files differ from it.

    Raises:
        FilesError: `root` is not a git repository, or has no commit.
    """
    commit = _git(root, "rev-parse", "--short=12", "HEAD").strip()
    is_changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *NEEDED)
    return f"{commit} with uncommitted changes" if is_changed else commit


def _git(root: Path, *arguments: str) -> str:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise FilesError("git is not installed.") from None
    except subprocess.CalledProcessError as error:
        raise FilesError(f"git {arguments[0]} failed: {error.stderr.strip()}") from None
