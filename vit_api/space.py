"""What a Hugging Face Space tells the container in it. Knows nothing of what the server makes of it.

A Space sets `SPACE_ID`; without it, nothing here has an effect.
"""

from __future__ import annotations

import os
from pathlib import Path

_CACHES = {"HF_HOME": "", "HF_HUB_CACHE": "hub"}
"""Variables that say where the hub's files are kept, and the place of each in the default directory."""


def cpu_cores() -> float | None:
    """Return how many cores the Space's hardware has; None if that is not known.

    A container sees all cores of the machine that it shares with other Spaces.
    """
    try:
        cores = float(_variable("CPU_CORES"))
    except ValueError:
        return None
    return cores if 0 < cores < float("inf") else None


def accelerator() -> str | None:
    """Return the name of the Space's accelerator, such as `t4-small`; None if it has none."""
    name = _variable("ACCELERATOR")
    return None if name.lower() in ("", "none") else name


def replaced_caches() -> dict[str, str]:
    """Return new values for the variables that name a cache which can't be written.

    They lead to the home directory. The usual case is `HF_HOME=/data/...` in a Space without persistent storage.
    """
    default = Path.home() / ".cache" / "huggingface"
    return {
        name: str(default / folder)
        for name, folder in _CACHES.items()
        if (path := _variable(name)) and not _can_be_written(Path(path))
    }


def _variable(name: str) -> str:
    """Return what a variable is in a Space; empty if it isn't set, or this is no Space."""
    return os.environ.get(name, "").strip() if os.environ.get("SPACE_ID") else ""


def _can_be_written(directory: Path) -> bool:
    """Say whether a directory, or the nearest one above that exists, is open to this process."""
    absolute = directory.expanduser().absolute()
    nearest = next(path for path in (absolute, *absolute.parents) if os.access(path, os.F_OK))
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
