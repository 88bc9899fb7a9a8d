"""Describes what a result was measured on: commit, hardware and versions."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

_PACKAGES = ("litserve", "torch", "fastapi", "uvicorn", "uvloop", "httptools", "cachetools", "multipart", "redis")
_CAPTIONED = ("python", "torch", "litserve", "uvicorn")
_WRITTEN = ("benchmarks/results", "benchmarks/README.md", "README.md", "docs")
"""Files that benchmarks and their report write, which don't count as changes, so that several can run in a row."""


def describe() -> dict[str, Any]:
    """Return the commit, the date, the processor, the cores and the versions."""
    return {
        "commit": (_git("rev-parse", "--short", "HEAD") or "").strip(),
        "has_uncommitted_changes": bool(uncommitted()),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    }


def caption(described: dict[str, Any]) -> str:
    """Return the caption of a table: the commit, the date and the machine."""
    versions = ", ".join(f"{name} {described['versions'][name]}" for name in _CAPTIONED)
    hardware = f"{described['processor']}, {described['cores']} cores"
    commit = described["commit"] + " with uncommitted changes" * described["has_uncommitted_changes"]
    return f"Commit {commit}, {described['date']}, {hardware}, {versions}."


def uncommitted(root: Path = ROOT) -> list[str] | None:
    """Return the changed and untracked files, except for results; None if git cannot say."""
    excluded = [f":(exclude){path}" for path in _WRITTEN]
    status = _git("status", "--porcelain", "--untracked-files=all", "--", ".", *excluded, root=root)
    return None if status is None else [line[3:] for line in status.splitlines()]


def _git(*arguments: str, root: Path = ROOT) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
