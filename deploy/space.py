"""Deploys this working tree to a Hugging Face Space, and rolls back if it does not work there.

    HF_TOKEN=... python -m deploy.space --repo ORGANISATION/NAME

Pushes the image's files as one commit, waits until the Space runs it, and runs a smoke test. If the build, the start or
the test fails, the files of the previous revision are pushed again. The exit status is 0 if the new revision runs, 1 if
the Space needs attention, 2 if nothing was changed, and 3 after a rollback; see docs/space.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy import command
from deploy.command import ROOT, say
from deploy.files import LocalFile, describe_commit, image_files
from deploy.hub import HubError, Login, login
from deploy.hub_space import HubSpace
from deploy.rollout import Rollout, Status
from deploy.watch import Watch


@dataclass(frozen=True)
class SpaceTarget:
    """A Space, and the files that it is to have.

    Attributes:
        space: The Space to deploy to.
        files: The image's files.
        title: The commit's title.
        login: Who calls the hub.
        log: Called with a line for each step.
    """

    space: HubSpace
    files: Sequence[LocalFile]
    title: str
    login: Login
    log: Callable[[str], None]
    kind: str = "Space"

    def deploy(self) -> tuple[str, str | None]:
        """Push the files; return the new commit and the one that worked before, or None.

        Raises:
            HubError: Nothing was changed.
            UncertainChangeError: The hub did not respond to the push.
        """
        before, head = self.space.runtime(), self.space.describe().head
        self.log(f"The Space {self.space.name} is at {head[:12]}, {before.stage}.")
        if before.stage == "PAUSED":
            raise HubError("The Space is paused and would not run a new revision: restart it.", is_transient=False)
        good = (before.revision or head) if before.is_healthy else None
        revision = self.space.push(self.files, head, self.title)
        self.log(f"Pushed {revision[:12]}: {self.title}." if revision != head else "The Space already has these files.")
        return revision, good

    def restore(self, good: str, failed: str) -> str:
        """Push the files of an earlier commit again.

        Raises:
            HubError: Another client has pushed since, or the hub did not respond.
        """
        restored = self.space.restore(good, failed, f"Roll back to {good[:12]}: {failed[:12]} failed")
        self.log(f"Pushed {restored[:12]}, which has the files of {good[:12]}.")
        return restored

    def address(self) -> tuple[str | None, str | None]:
        """Return the application's address, and the token that a private Space needs.

        Raises:
            HubError: The hub rejected the call or did not respond.
        """
        space = self.space.describe()
        return space.url, self.login.current_token() if space.is_private else None


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> Status:
    """Run the command and return its exit status.

    The environment must have `HF_TOKEN` or `HF_OIDC_RESOURCE`, and may have `SPACE_API_KEY` and `HF_ENDPOINT`.
    """
    options = _parser().parse_args(arguments)

    def run() -> Status:
        who = login(environment, f"spaces/{options.repo}")
        with tempfile.TemporaryDirectory() as folder:
            files, title = image_files(options.root), f"Deploy {describe_commit(options.root)}"
            if options.container_image:
                files = _files_of_image(options.container_image, files, Path(folder))
            space = HubSpace(options.repo, who, environment.get("HF_ENDPOINT"))
            watch = Watch(space, command.patience(options), say)
            smoke_test = command.smoke_test(options, environment, "SPACE_API_KEY")
            return Rollout(SpaceTarget(space, files, title, who, say), watch, smoke_test, say).run()

    return command.report(run, "Space")


def _files_of_image(image: str, files: Sequence[LocalFile], folder: Path) -> list[LocalFile]:
    """Return the files of a Space that runs an image: README.md with the Space's settings, and a Dockerfile."""
    dockerfile = folder / "Dockerfile"
    dockerfile.write_text(f"FROM {image}\n")
    return [*(file for file in files if file.name == "README.md"), LocalFile("Dockerfile", dockerfile)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.space", description=__doc__.partition("\n")[0])
    parser.add_argument("--repo", required=True, metavar="ORGANISATION/NAME", help="the Space")
    parser.add_argument("--root", type=Path, default=ROOT, help="the working tree")
    parser.add_argument(
        "--container-image",
        type=command.container_image,
        metavar="IMAGE@sha256:...",
        help="run this image instead of building one from the working tree; it must be public",
    )
    command.add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
