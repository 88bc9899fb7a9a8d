"""The steps of a deployment: change, wait, test, and roll back on failure. Must not know what is deployed where."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from deploy.hub import HubError, UncertainChangeError
from deploy.smoke import SmokeFailure, SmokeTest
from deploy.watch import NotRunning, Watch

V = TypeVar("V")
"""What a target runs: a commit of a Space, a configuration of an Endpoint. Its text is for the log."""


class Status(enum.IntEnum):
    """The outcome, and the exit status. Python's own status after an unexpected exception is 1, too."""

    DEPLOYED = 0
    BROKEN = 1
    UNCHANGED = 2
    ROLLED_BACK = 3


class Target(Protocol[V]):
    """Where the server is deployed."""

    @property
    def kind(self) -> str:
        """The word for it, in messages: `Space`."""

    def deploy(self) -> tuple[V, V | None]:
        """Change what runs; return the new version and the one that worked before, or None.

        Raises:
            HubError: Nothing was changed.
            UncertainChangeError: It is not known whether anything was.
        """

    def restore(self, good: V, failed: V) -> V:
        """Go back to a version, unless something else was deployed after the one that failed; return what runs then.

        Raises:
            HubError: That was not possible.
        """

    def address(self) -> tuple[str | None, str | None]:
        """Return the server's address, or None if there is none, and the token for requests, if they need one.

        Raises:
            HubError: The hub rejected the call or did not respond.
        """


def label(version: object) -> str:
    """Return a version as the log names it: ids are shortened."""
    return str(version)[:12] if isinstance(version, str) else str(version)


@dataclass(frozen=True)
class Rollout(Generic[V]):
    """A deployment.

    Attributes:
        target: Where to deploy.
        watch: Waits until the target runs a version.
        smoke_test: Tests what runs.
        log: Called with a line for each step.
    """

    target: Target[V]
    watch: Watch
    smoke_test: SmokeTest
    log: Callable[[str], None]

    def run(self) -> Status:
        """Deploy, and roll back if the new version does not work.

        Raises:
            HubError: Nothing was changed.
        """
        try:
            version, good = self.target.deploy()
        except UncertainChangeError as error:
            self.log(str(error))
            return Status.BROKEN
        if failure := self._failure(version):
            self.log(f"{label(version)} failed. {_explain(failure)}")
            return self._roll_back(version, good)
        self.log(f"{label(version)} runs and passed the smoke test.")
        return Status.DEPLOYED

    def _failure(self, version: V) -> Exception | None:
        """Return why a version does not work, or None if it does."""
        try:
            self.watch.until_running(version)
            url, token = self.target.address()
            if url is None:
                return SmokeFailure(f"The hub does not report the {self.target.kind}'s address.")
            self.smoke_test.run(url, token)
        except Exception as error:  # unexpected ones, too: they must not prevent the rollback
            return error
        return None

    def _roll_back(self, failed: V, good: V | None) -> Status:
        if good is None or good == failed:
            self.log(f"There is no earlier working version; the {self.target.kind} stays as it is.")
            return Status.BROKEN
        try:
            restored = self.target.restore(good, failed)
        except HubError as error:
            self.log(f"The rollback to {label(good)} failed. {error}")
            return Status.BROKEN
        if failure := self._failure(restored):
            self.log(f"The rollback {label(restored)} failed, too. {_explain(failure)}")
            return Status.BROKEN
        self.log(f"{label(restored)} runs and passed the smoke test.")
        return Status.ROLLED_BACK


def _explain(failure: Exception) -> str:
    """Return an error's message; of an unexpected one only its type, since its text may contain secrets."""
    is_ours = isinstance(failure, (NotRunning, HubError, SmokeFailure))
    return str(failure) if is_ours else f"Unexpected error: {type(failure).__name__}."
