"""The environment with Ray and pyarrow, which `make ray` makes. Imports neither."""

from __future__ import annotations

import os
import sys

from benchmarks.harness.machine import ROOT

FOLDER = ROOT / ".venv-ray"
PYTHON = FOLDER / "bin" / "python"
_SETTINGS = ("VIT_API_", "RAY_ADDRESS")
_NICENESS = "0"
"""By default Ray's workers have 15, so that any other program on the machine would stop them."""


def is_installed() -> bool:
    """Return whether the environment is complete."""
    return (FOLDER / "ray.stamp").exists()


def require() -> None:
    """Exit with status 1 unless it is installed."""
    if not is_installed():
        sys.exit("Ray is not installed in .venv-ray: run `make ray`.")


def variables(**others: str) -> dict[str, str]:
    """Return the environment variables of a program that runs in it: no settings of the server but these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    path = f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"
    own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": _NICENESS}
    return inherited | {"PATH": path, "PYTHONPATH": str(ROOT), **own, **others}
