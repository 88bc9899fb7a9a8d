"""Deploy this working tree to a Hugging Face Space, and go back if it does not work there.

    HF_TOKEN=... python -m deploy.space --repo ORGANISATION/NAME

Pushes the files that the image needs as one commit, waits until the Space runs it, and has it classify an image. If the
build, the start or that test fails, the files that ran before are pushed again. The exit status is 0 if the new
revision runs, 1 if a person has to look, 2 if nothing was changed, and 3 if it was taken back: docs/space.md.
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
# What runs, or ran until it fell asleep, was well.
_WELL = {"RUNNING", "RUNNING_BUILDING", "RUNNING_APP_STARTING", "SLEEPING", "STOPPED"}


class Status(enum.IntEnum):
    """How it ended; the exit status. Python's own, after an error that nobody foresaw, is 1."""

    DEPLOYED = 0
    BROKEN = 1
    UNCHANGED = 2
    TAKEN_BACK = 3


def _say(line: str) -> None:
    print(line, flush=True)


@dataclass(frozen=True)
class Deployment:
    """What a deployment needs.

    Attributes:
        space: Where to.
        watch: Waits until the Space runs something.
        smoke_test: Judges what runs.
        hub_token: For requests to a private Space.
        log: Gets a line for each step.
    """

    space: HubSpace
    watch: Watch
    smoke_test: SmokeTest
    hub_token: str
    log: Callable[[str], None] = _say

    def run(self, files: Sequence[LocalFile], title: str) -> Status:
        """Deploy these files, or go back to what ran before.

        Args:
            files: What the image needs.
            title: The commit's title.

        Raises:
            HubError: Nothing could be changed.
        """
        before, head = self.space.runtime(), self.space.describe().head
        self.log(f"the Space {self.space.name} is at {head[:12]}, {before.stage}")
        if before.stage == "PAUSED":
            raise HubError("the Space is paused, and would not run what is pushed: restart it", is_passing=False)
        good = (before.revision or head) if before.stage in _WELL else None
        try:
            revision = self.space.push(files, head, title)
        except UncertainCommitError as error:
            self.log(str(error))
            return Status.BROKEN
        self.log(f"pushed {revision[:12]}: {title}" if revision != head else "nothing changed: it has these files")
        if failure := self._failure(revision):
            self.log(f"{revision[:12]} failed: {_explain(failure)}")
            return self._take_back(revision, good)
        self.log(f"{revision[:12]} runs, and classifies")
        return Status.DEPLOYED

    def _failure(self, revision: str) -> Exception | None:
        """Return what keeps a pushed revision from being well; None if it is."""
        try:
            self.watch.until_running(revision)
            space = self.space.describe()
            if space.url is None:
                return SmokeFailure("the hub does not say where the Space answers")
            self.smoke_test.run(space.url, self.hub_token if space.is_private else None)
        except Exception as error:  # also one that nobody foresaw: the way back must be gone all the same
            return error
        return None

    def _take_back(self, revision: str, good: str | None) -> Status:
        if good is None or good == revision:
            self.log("there is no other revision that ran before; the Space stays as it is")
            return Status.BROKEN
        try:
            restored = self.space.restore(good, revision, f"Back to {good[:12]}: {revision[:12]} failed")
        except HubError as error:
            self.log(f"{good[:12]}, which ran before, could not be pushed again: {error}")
            return Status.BROKEN
        self.log(f"pushed {restored[:12]}: the files of {good[:12]}, which ran before")
        if failure := self._failure(restored):
            self.log(f"{restored[:12]} failed, too: {_explain(failure)}")
            return Status.BROKEN
        self.log(f"{restored[:12]} runs, and classifies")
        return Status.TAKEN_BACK


def _explain(failure: Exception) -> str:
    """Say what went wrong; of an error that nobody foresaw only the kind, as its text may have anything in it."""
    is_ours = isinstance(failure, (NotRunning, HubError, SmokeFailure))
    return str(failure) if is_ours else f"unexpected {type(failure).__name__}"


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> Status:
    """Deploy as the command line and the environment say; print what happens.

    The environment has `HF_TOKEN`, and may have `SPACE_API_KEY` and `HF_ENDPOINT`.
    """
    options = _parser().parse_args(arguments)
    token = environment.get("HF_TOKEN", "")
    try:
        if not token:
            raise FilesError("HF_TOKEN is not set: it must be a token that may write to the Space")
        files, title = image_files(options.root), f"Deploy {describe_commit(options.root)}"
        space = HubSpace(options.repo, token, environment.get("HF_ENDPOINT"))
        watch = Watch(space, Patience(options.timeout_s, options.poll_s), _say)
        key = environment.get("SPACE_API_KEY") or None
        smoke_test = SmokeTest(options.image.read_bytes(), options.ready_timeout_s, options.poll_s, key)
        status = Deployment(space, watch, smoke_test, token).run(files, title)
    except (FilesError, HubError, OSError) as error:
        _say(f"nothing was deployed: {error}")
        return Status.UNCHANGED
    _say(_MEANINGS[status])
    return status


_MEANINGS = {
    Status.DEPLOYED: "deployed",
    Status.TAKEN_BACK: "not deployed: the Space runs what it ran before",
    Status.BROKEN: "failed, and the Space is not well: a person has to look at it",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.space", description=__doc__.partition("\n")[0])
    parser.add_argument("--repo", required=True, metavar="ORGANISATION/NAME", help="the Space")
    parser.add_argument("--root", type=Path, default=_ROOT, help="the working tree")
    parser.add_argument("--image", type=Path, default=_ROOT / "examples" / "digit-7.png", help="what to classify")
    parser.add_argument("--timeout-s", type=float, default=3600.0, help="for the build and the start")
    parser.add_argument("--ready-timeout-s", type=float, default=600.0, help="until it classifies, from its start")
    parser.add_argument("--poll-s", type=float, default=5.0, help="between two questions")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
