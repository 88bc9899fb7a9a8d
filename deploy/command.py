"""What the commands `deploy.space` and `deploy.endpoint` share: options, output and exit status."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.files import FilesError
from deploy.hub import HubError
from deploy.rollout import Status
from deploy.smoke import SmokeTest
from deploy.watch import Patience

ROOT = Path(__file__).resolve().parent.parent
_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def container_image(text: str) -> str:
    """Return an image's reference; for argparse, which reports the error.

    Raises:
        ValueError: It has no digest. A tag may be moved: what was tested would not be what runs, or is restored.
    """
    if not _DIGEST.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} has no digest: write it as REGISTRY/NAME@sha256:...")
    return text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the wait and the smoke test."""
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "digit-7.png", help="image to classify")
    parser.add_argument("--timeout-s", type=float, default=3600.0, help="time limit for build and start")
    parser.add_argument("--ready-timeout-s", type=float, default=600.0, help="time limit for the smoke test")
    parser.add_argument("--poll-s", type=float, default=5.0, help="time between two requests")


def patience(options: argparse.Namespace) -> Patience:
    """Return the time limits."""
    return Patience(options.timeout_s, options.poll_s)


def smoke_test(options: argparse.Namespace, environment: Mapping[str, str], key: str) -> SmokeTest:
    """Return the smoke test, with the API key in the environment variable `key`.

    Raises:
        OSError: The image can't be read.
    """
    image = options.image.read_bytes()
    return SmokeTest(image, options.ready_timeout_s, options.poll_s, environment.get(key) or None, key)


def report(run: Callable[[], Status], kind: str) -> Status:
    """Deploy, and print the outcome."""
    try:
        status = run()
    except (FilesError, HubError, OSError) as error:
        say(f"Nothing was deployed. {error}")
        return Status.UNCHANGED
    say(
        {
            Status.DEPLOYED: "Deployed.",
            Status.ROLLED_BACK: f"Rolled back: the {kind} runs the previous version.",
            Status.BROKEN: f"Failed: the {kind} needs attention.",
        }[status]
    )
    return status
