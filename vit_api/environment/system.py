"""Checks that the operating system can run the server. Imports nothing, since elsewhere most imports would fail."""

from __future__ import annotations

import sys

_REFUSAL = (
    "error: The server runs on Linux only: its processes share memory by file descriptor (memfd_create) and listen on "
    "one port (SO_REUSEPORT). On macOS and Windows, run the container: docker build --tag vit-api . && "
    "docker run --rm --publish 7860:7860 vit-api --model digits"
)


def require_linux() -> None:
    """Exit with status 1 and a line that says why, and what to do, unless this is Linux."""
    if sys.platform != "linux":
        sys.exit(_REFUSAL)


if __name__ == "__main__":
    require_linux()
