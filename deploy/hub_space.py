"""A Space on the Hugging Face hub: its files, its revisions and what it runs. Must not decide when to deploy.

Uses `huggingface_hub` 2.4. Every failed call raises `HubError`; no message contains the token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from huggingface_hub import (
    CommitOperation,
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    RepoFile,
    constants,
    get_session,
)

from deploy.files import LocalFile

ANSWER_S = 60.0
"""Timeout of a request. The library sets none, and would wait forever for a hub that stopped responding."""

_KEPT = {".gitattributes"}
"""Created by the hub; it lists which files are in large-file storage."""


class HubError(Exception):
    """The hub rejected a call or did not respond.

    Attributes:
        is_transient: Whether the same call may succeed later.
    """

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class UncertainCommitError(HubError):
    """The hub did not respond, so the commit may or may not exist."""


@dataclass(frozen=True)
class Runtime:
    """What a Space is doing.

    Attributes:
        stage: The name that the hub uses: BUILDING, RUNNING, BUILD_ERROR ...
        revision: The commit that it runs; None if the hub does not report one.
    """

    stage: str
    revision: str | None


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
        token: A hub token with write access to the Space.
        endpoint: The hub's address; the public hub by default.
    """

    def __init__(self, name: str, token: str, endpoint: str | None = None) -> None:
        self.name = name
        self._api = HfApi(endpoint=endpoint, token=token)
        self.page = f"{endpoint or constants.ENDPOINT}/spaces/{name}"

    def describe(self) -> Description:
        """Return what the hub knows about the Space.

        Raises:
            HubError: There is no such Space, or the hub did not respond.
        """
        with _explaining():
            info = self._api.space_info(self.name, timeout=ANSWER_S)
        if info.sha is None:
            raise HubError("The Space has no commit yet: push one first.", is_transient=False)
        return Description(info.sha, info.host, bool(info.private))

    def runtime(self) -> Runtime:
        """Return what the Space is doing now.

        Raises:
            HubError: The hub rejected the call or did not respond.
        """
        with _explaining():
            get_session().timeout = ANSWER_S
            runtime = self._api.get_space_runtime(self.name)
        return Runtime(str(getattr(runtime.stage, "value", runtime.stage)), runtime.raw.get("sha"))

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
            UncertainCommitError: The hub did not respond.
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
            UncertainCommitError: The hub did not respond.
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
        with _explaining():
            tree = self._api.list_repo_tree(self.name, repo_type="space", revision=revision, recursive=True)
            return {item.path: item for item in tree if isinstance(item, RepoFile)}

    def _commit(self, operations: list[CommitOperation], parent: str, message: str) -> str:
        if not operations:
            return parent
        try:
            with _explaining():
                return self._api.create_commit(
                    self.name, operations, commit_message=message, repo_type="space", parent_commit=parent
                ).oid
        except HubError as error:
            if error.is_transient:
                raise UncertainCommitError(
                    f"The commit may or may not have been created. {error}", is_transient=True
                ) from error
            raise


def _is_same(file: LocalFile, present: RepoFile | None) -> bool:
    if present is None:
        return False
    return file.is_same(present.blob_id, present.lfs.sha256 if present.lfs else None)


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    """Turn any exception of the library into a `HubError`."""
    try:
        yield
    except Exception as error:  # its own, its HTTP client's, and ValueError for a bad README
        raise _explain(error) from error


def _explain(error: Exception) -> HubError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = str(getattr(error, "server_message", None) or error).strip()
    if status in (401, 403, 404):
        hint = "check the Space's name, and that HF_TOKEN is valid and has write access"
        return HubError(f"The hub responded with status {status}: {hint} ({said.splitlines()[0]}).", is_transient=False)
    if status == 412:
        return HubError("The Space has a newer commit than expected: another client pushed to it.", is_transient=False)
    if status is None:
        is_transient = isinstance(error, OSError) or "httpx" in type(error).__module__
        # Only the type of the cause: its text may contain an upload's signed URL.
        kind = type(error.__cause__ or error).__name__
        return HubError(f"{said} ({kind}).", is_transient=is_transient)
    return HubError(
        f"The hub responded with status {status} ({said.splitlines()[0]}).", is_transient=status >= 500 or status == 429
    )
