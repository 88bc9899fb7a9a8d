"""What a start on another system than Linux says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.server import ROOT

_START = (
    "import sys; sys.platform = {platform!r}; sys.argv = ['server.py']; from vit_api.__main__ import serve; serve()"
)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_another_system_is_refused_in_one_line(platform: str) -> None:
    """The line says why, and has the container's command; nothing that is missing there is imported before."""
    command = [sys.executable, "-S", "-c", _START.format(platform=platform)]  # -S: as without any package
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "Linux only" in line
    assert "SO_REUSEPORT" in line
    assert "docker run --rm --publish 7860:7860 vit-api" in line


def test_make_checks_the_system_before_it_downloads() -> None:
    """A newcomer on macOS waits for no download first."""
    made = subprocess.run(
        ["make", "--dry-run", "--always-make", "run"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert made.index("vit_api.environment.system") < made.index("pip install")
