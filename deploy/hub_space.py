"""A Space on the Hugging Face hub: its files, its revisions and what it runs. Must not decide when to deploy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import (
    CommitOperation,
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    constants,
)

from deploy.files import LocalFile
from deploy.hub import ANSWER_S, HubError, Login, explaining

_KEPT = {".gitattributes"}
"""Created by the hub; it lists which files are in large-file storage."""

_BUSY = {"BUILDING", "RUNNING_BUILDING", "APP_STARTING", "RUNNING_APP_STARTING"}
_FAILED = {"BUILD_ERROR", "RUNTIME_ERROR", "CONFIG_ERROR", "NO_APP_FILE", "PAUSED", "DELETING"}
_HEALTHY = {"RUNNING", "RUNNING_BUILDING", "RUNNING_APP_STARTING", "SLEEPING", "STOPPED"}


@dataclass(frozen=True)
class Runtime:
    """What a Space is doing.

    Attributes:
        stage: The name that the hub uses: BUILDING, RUNNING, BUILD_ERROR ...
        revision: The commit that it runs; None if the hub does not report one.
    """

    stage: str
    revision: str | None

    def __str__(self) -> str:
        return f"{self.stage}, revision {(self.revision or 'unknown')[:12]}"

    @property
    def is_busy(self) -> bool:
        """Whether a build or a start is in progress."""
        return self.stage in _BUSY

    @property
    def is_healthy(self) -> bool:
        """Whether the current revision works, or worked until the Space was put to sleep."""
        return self.stage in _HEALTHY

    @property
    def has_failed(self) -> bool:
        """Whether it will not run without another push."""
        return self.stage in _FAILED

    def names(self, version: str) -> bool:
        """Return whether this is of a revision."""
        return self.revision == version

    def runs(self, version: str, is_new: bool) -> bool:
        """Return whether a revision runs."""
        return self.stage == "RUNNING" and self.names(version)


@dataclass(frozen=True)
class Description:
    """What the hub knows about a Space.

    Attributes:
        head: The newest commit of its main branch.
        url: Its address; None before its first run.
        is_private: Whether requests to it need a hub token.
    """

    head: str
    url: str | None
    is_private: bool


class HubSpace:
    """A Space.

    Args:
        name: `organisation/name`.
        login: Who calls the hub, with write access to the Space.
        endpoint: The hub's address; the public hub by default.
    """

    kind = "Space"

    def __init__(self, name: str, login: Login, endpoint: str | None = None) -> None:
        self.name = name
        self._api = HfApi(endpoint=endpoint, token=login.token)  # None: the library gets one for each call
        self._page = f"{endpoint or constants.ENDPOINT}/spaces/{name}"

    def describe(self) -> Description:
        """Return what the hub knows about the Space.

        Raises:
            HubError: There is no such Space, or the hub did not respond.
        """
        with explaining("Space"):
            info = self._api.space_info(self.name, timeout=ANSWER_S)
        if info.sha is None:
            raise HubError("The Space has no commit yet: push one first.", is_transient=False)
        return Description(info.sha, info.host, bool(info.private))

    def runtime(self) -> Runtime:
        """Return what the Space is doing now.

        Raises:
            HubError: The hub rejected the call or did not respond.
        """
        with explaining("Space"):
            runtime = self._api.get_space_runtime(self.name)
        return Runtime(str(getattr(runtime.stage, "value", runtime.stage)), runtime.raw.get("sha"))

    def log_page(self, runtime: Runtime) -> str:
        """Return the address of the log of the build or of the container."""
        return f"{self._page}?logs={'build' if runtime.stage == 'BUILD_ERROR' else 'container'}"

    def push(self, files: Sequence[LocalFile], parent: str, message: str) -> str:
        """Replace all files of the Space by these, in one commit.

        Args:
            files: The files that the Space is to have.
            parent: The commit that must still be the head of the main branch.
            message: The commit's title.

        Returns:
            The new commit, or the parent if it has these files already.

        Raises:
            HubError: The hub rejected the commit, or the branch has moved since.
            UncertainChangeError: The hub did not respond.
        """
        present = self._files(parent)
        changed = [file for file in files if not _is_same(file, present.get(file.name))]
        obsolete = present.keys() - {file.name for file in files} - _KEPT
        operations: list[CommitOperation] = [CommitOperationAdd(file.name, file.path) for file in changed]
        operations += [CommitOperationDelete(name) for name in sorted(obsolete)]
        return self._commit(operations, parent, message)

    def restore(self, revision: str, parent: str, message: str) -> str:
        """Restore the files of an earlier revision in a new commit; history is kept.

        The hub's API can't move a branch back. The files are copied on the hub, so the result does not depend on the
        working tree.

        Args:
            revision: The commit whose files are restored.
            parent: The commit that must still be the head of the main branch.
            message: The commit's title.

        Returns:
            The new commit, or the parent if both have the same files.

        Raises:
            HubError: The hub rejected the commit, or the branch has moved since.
            UncertainChangeError: The hub did not respond.
        """
        wanted, present = self._files(revision), self._files(parent)
        operations: list[CommitOperation] = [
            CommitOperationCopy(name, name, src_revision=revision)
            for name, file in wanted.items()
            if name not in present or present[name].blob_id != file.blob_id
        ]
        operations += [CommitOperationDelete(name) for name in sorted(present.keys() - wanted.keys())]
        return self._commit(operations, parent, message)

    def _files(self, revision: str) -> dict[str, RepoFile]:
        with explaining("Space"):
            tree = self._api.list_repo_tree(self.name, repo_type="space", revision=revision, recursive=True)
            return {item.path: item for item in tree if isinstance(item, RepoFile)}

    def _commit(self, operations: list[CommitOperation], parent: str, message: str) -> str:
        if not operations:
            return parent
        with explaining("Space", changes=True):
            return self._api.create_commit(
                self.name, operations, commit_message=message, repo_type="space", parent_commit=parent
            ).oid


def _is_same(file: LocalFile, present: RepoFile | None) -> bool:
    if present is None:
        return False
    return file.is_same(present.blob_id, present.lfs.sha256 if present.lfs else None)
