"""A Space on the Hugging Face hub: its files, its revisions and what it runs. Knows nothing of when to deploy.

With `huggingface_hub` 2.4.0. Every call that fails raises `HubError`; no message has the token in it.
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
"""The library sets no time limit of its own, and would wait for ever for a hub that went silent."""

_KEPT = {".gitattributes"}
"""Made by the hub: says which files go to large-file storage."""


class HubError(Exception):
    """The hub refuses something, or doesn't answer; the message says what.

    Attributes:
        is_passing: The same call may succeed later.
    """

    def __init__(self, message: str, *, is_passing: bool) -> None:
        super().__init__(message)
        self.is_passing = is_passing


class UncertainCommitError(HubError):
    """The hub didn't answer, so that nobody knows whether the commit was made."""


@dataclass(frozen=True)
class Runtime:
    """What a Space does.

    Attributes:
        stage: As the hub names it: BUILDING, RUNNING, BUILD_ERROR ...
        revision: The commit that it runs; None if the hub doesn't say.
    """

    stage: str
    revision: str | None


@dataclass(frozen=True)
class Description:
    """What the hub knows of a Space.

    Attributes:
        head: The newest commit of its main branch.
        url: Where it answers; None before it ran for the first time.
        is_private: Requests to it need a token of the hub.
    """

    head: str
    url: str | None
    is_private: bool


class HubSpace:
    """A Space.

    Args:
        name: `organisation/name`.
        token: A token of the hub that may write to the Space.
        endpoint: The hub's address; None: the public one.
    """

    def __init__(self, name: str, token: str, endpoint: str | None = None) -> None:
        self.name = name
        self._api = HfApi(endpoint=endpoint, token=token)
        self.page = f"{endpoint or constants.ENDPOINT}/spaces/{name}"

    def describe(self) -> Description:
        """Return what the hub knows of the Space.

        Raises:
            HubError: There is no such Space, or the hub doesn't answer.
        """
        with _explaining():
            info = self._api.space_info(self.name, timeout=ANSWER_S)
        if info.sha is None:
            raise HubError("the Space has no commit yet", is_passing=False)
        return Description(info.sha, info.host, bool(info.private))

    def runtime(self) -> Runtime:
        """Return what the Space does now.

        Raises:
            HubError: The hub doesn't say.
        """
        with _explaining():
            get_session().timeout = ANSWER_S
            runtime = self._api.get_space_runtime(self.name)
        return Runtime(str(getattr(runtime.stage, "value", runtime.stage)), runtime.raw.get("sha"))

    def push(self, files: Sequence[LocalFile], parent: str, message: str) -> str:
        """Make these files, and no others, the Space's, in one commit.

        Args:
            files: What the Space shall have.
            parent: The commit that the main branch must still be at.
            message: The commit's title.

        Returns:
            The new commit; the parent if it has these files already.

        Raises:
            HubError: The hub refuses, or somebody else has pushed since.
            UncertainCommitError: The hub didn't answer.
        """
        present = self._files(parent)
        changed = [file for file in files if not _is_same(file, present.get(file.name))]
        superfluous = present.keys() - {file.name for file in files} - _KEPT
        operations: list[CommitOperation] = [CommitOperationAdd(file.name, file.path) for file in changed]
        operations += [CommitOperationDelete(name) for name in sorted(superfluous)]
        return self._commit(operations, parent, message)

    def restore(self, revision: str, parent: str, message: str) -> str:
        """Make the files of an earlier revision the Space's again, in a new commit: history stays as it was.

        A branch of the hub can't be moved back by its API. The hub's own copies are used, so that the result doesn't
        depend on what is checked out here.

        Args:
            revision: The commit whose files are wanted.
            parent: The commit that the main branch must still be at.
            message: The commit's title.

        Returns:
            The new commit; the parent if the two have the same files.

        Raises:
            HubError: The hub refuses, or somebody else has pushed since.
            UncertainCommitError: The hub didn't answer.
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
            if error.is_passing:
                raise UncertainCommitError(
                    f"the commit may have been made, or not: {error}", is_passing=True
                ) from error
            raise


def _is_same(file: LocalFile, present: RepoFile | None) -> bool:
    if present is None:
        return False
    return file.is_same(present.blob_id, present.lfs.sha256 if present.lfs else None)


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    """Turn whatever the library raises into our own error."""
    try:
        yield
    except Exception as error:  # the library's own, those of its HTTP client, and ValueError for a bad README
        raise _explain(error) from error


def _explain(error: Exception) -> HubError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = str(getattr(error, "server_message", None) or error).strip()
    if status in (401, 403, 404):
        hint = "check the Space's name, and that HF_TOKEN is valid and may write to it"
        return HubError(f"the hub answers {status}: {hint} ({said.splitlines()[0]})", is_passing=False)
    if status == 412:
        return HubError("somebody else has pushed to the Space in the meantime", is_passing=False)
    if status is None:
        is_passing = isinstance(error, OSError) or "httpx" in type(error).__module__
        # Of what is behind it only the kind: an upload's address may have a signature in it.
        kind = type(error.__cause__ or error).__name__
        return HubError(f"{said} ({kind})", is_passing=is_passing)
    return HubError(f"the hub answers {status} ({said.splitlines()[0]})", is_passing=status >= 500 or status == 429)
