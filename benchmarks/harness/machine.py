"""What a result must name to mean anything: commit, hardware and versions."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

_PACKAGES = ("litserve", "torch", "fastapi", "uvicorn", "uvloop", "httptools", "cachetools", "multipart", "redis")


def describe() -> dict[str, Any]:
    """Return the commit, the date, the processor, the cores and the versions."""
    return {
        "commit": _git("rev-parse", "--short", "HEAD"),
        "has_uncommitted_changes": bool(
            _git("status", "--porcelain", "--", "vit_api", "benchmarks/*.py", "benchmarks/*/*.py")
        ),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    }


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
