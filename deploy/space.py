"""Deploys this working tree to a Hugging Face Space, and rolls back if it does not work there.

    HF_TOKEN=... python -m deploy.space --repo ORGANISATION/NAME

Pushes the image's files as one commit, waits until the Space runs it, and runs a smoke test. If the build, the start or
the test fails, the files of the previous revision are pushed again. The exit status is 0 if the new revision runs, 1 if
the Space needs attention, 2 if nothing was changed, and 3 after a rollback; see docs/space.md.
"""

from __future__ import annotations

import argparse
import enum
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.files import FilesError, LocalFile, describe_commit, image_files
from deploy.hub_space import HubError, HubSpace, UncertainCommitError
from deploy.smoke import SmokeFailure, SmokeTest
from deploy.watch import NotRunning, Patience, Watch

_ROOT = Path(__file__).resolve().parent.parent
# In these stages the current revision works, or worked until the Space was put to sleep.
_HEALTHY = {"RUNNING", "RUNNING_BUILDING", "RUNNING_APP_STARTING", "SLEEPING", "STOPPED"}


class Status(enum.IntEnum):
    """The outcome, and the exit status. Python's own status after an unexpected exception is 1, too."""

    DEPLOYED = 0
    BROKEN = 1
    UNCHANGED = 2
    ROLLED_BACK = 3


def _say(line: str) -> None:
    print(line, flush=True)


@dataclass(frozen=True)
class Deployment:
    """A deployment.

    Attributes:
        space: The Space to deploy to.
        watch: Waits until the Space runs a revision.
        smoke_test: Tests what runs.
        hub_token: For requests to a private Space.
        log: Called with a line for each step.
    """

    space: HubSpace
    watch: Watch
    smoke_test: SmokeTest
    hub_token: str
    log: Callable[[str], None] = _say

    def run(self, files: Sequence[LocalFile], title: str) -> Status:
        """Deploy these files; roll back if they do not work.

        Args:
            files: The image's files.
            title: The commit's title.

        Raises:
            HubError: Nothing was changed.
        """
        before, head = self.space.runtime(), self.space.describe().head
        self.log(f"The Space {self.space.name} is at {head[:12]}, {before.stage}.")
        if before.stage == "PAUSED":
            raise HubError("The Space is paused and would not run a new revision: restart it.", is_transient=False)
        good = (before.revision or head) if before.stage in _HEALTHY else None
        try:
            revision = self.space.push(files, head, title)
        except UncertainCommitError as error:
            self.log(str(error))
            return Status.BROKEN
        self.log(f"Pushed {revision[:12]}: {title}." if revision != head else "The Space already has these files.")
        if failure := self._failure(revision):
            self.log(f"{revision[:12]} failed. {_explain(failure)}")
            return self._roll_back(revision, good)
        self.log(f"{revision[:12]} runs and passed the smoke test.")
        return Status.DEPLOYED

    def _failure(self, revision: str) -> Exception | None:
        """Return why a pushed revision does not work, or None if it does."""
        try:
            self.watch.until_running(revision)
            space = self.space.describe()
            if space.url is None:
                return SmokeFailure("The hub does not report the Space's address.")
            self.smoke_test.run(space.url, self.hub_token if space.is_private else None)
        except Exception as error:  # unexpected ones, too: they must not prevent the rollback
            return error
        return None

    def _roll_back(self, revision: str, good: str | None) -> Status:
        if good is None or good == revision:
            self.log("There is no earlier working revision; the Space stays as it is.")
            return Status.BROKEN
        try:
            restored = self.space.restore(good, revision, f"Roll back to {good[:12]}: {revision[:12]} failed")
        except HubError as error:
            self.log(f"The rollback to {good[:12]} could not be pushed. {error}")
            return Status.BROKEN
        self.log(f"Pushed {restored[:12]}, which has the files of {good[:12]}.")
        if failure := self._failure(restored):
            self.log(f"The rollback {restored[:12]} failed, too. {_explain(failure)}")
            return Status.BROKEN
        self.log(f"{restored[:12]} runs and passed the smoke test.")
        return Status.ROLLED_BACK


def _explain(failure: Exception) -> str:
    """Return an error's message; of an unexpected one only its type, since its text may contain secrets."""
    is_ours = isinstance(failure, (NotRunning, HubError, SmokeFailure))
    return str(failure) if is_ours else f"Unexpected error: {type(failure).__name__}."


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> Status:
    """Run the command and return its exit status.

    The environment must have `HF_TOKEN`, and may have `SPACE_API_KEY` and `HF_ENDPOINT`.
    """
    options = _parser().parse_args(arguments)
    token = environment.get("HF_TOKEN", "")
    try:
        if not token:
            raise FilesError("HF_TOKEN is not set: set it to a token with write access to the Space.")
        files, title = image_files(options.root), f"Deploy {describe_commit(options.root)}"
        space = HubSpace(options.repo, token, environment.get("HF_ENDPOINT"))
        watch = Watch(space, Patience(options.timeout_s, options.poll_s), _say)
        key = environment.get("SPACE_API_KEY") or None
        smoke_test = SmokeTest(options.image.read_bytes(), options.ready_timeout_s, options.poll_s, key)
        status = Deployment(space, watch, smoke_test, token).run(files, title)
    except (FilesError, HubError, OSError) as error:
        _say(f"Nothing was deployed. {error}")
        return Status.UNCHANGED
    _say(_MEANINGS[status])
    return status


_MEANINGS = {
    Status.DEPLOYED: "Deployed.",
    Status.ROLLED_BACK: "Rolled back: the Space runs the previous revision.",
    Status.BROKEN: "Failed: the Space needs attention.",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.space", description=__doc__.partition("\n")[0])
    parser.add_argument("--repo", required=True, metavar="ORGANISATION/NAME", help="the Space")
    parser.add_argument("--root", type=Path, default=_ROOT, help="the working tree")
    parser.add_argument(
        "--image", type=Path, default=_ROOT / "examples" / "digit-7.png", help="image for the smoke test"
    )
    parser.add_argument("--timeout-s", type=float, default=3600.0, help="time limit for build and start")
    parser.add_argument("--ready-timeout-s", type=float, default=600.0, help="time limit for the smoke test")
    parser.add_argument("--poll-s", type=float, default=5.0, help="time between two requests")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
