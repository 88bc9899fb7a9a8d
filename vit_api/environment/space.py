"""Reads the environment that a Hugging Face Space provides to its container. Knows nothing of what it is used for.

A Space sets `SPACE_ID`; without it, nothing here has an effect.
"""

from __future__ import annotations

import os
from pathlib import Path

from vit_api.environment.home import is_writable

_CACHES = {"HF_HOME": "", "HF_HUB_CACHE": "hub"}
"""Variables for the directories of the hub's files, with each one's subdirectory of the default directory."""


def cpu_cores() -> float | None:
    """Return the number of cores of the Space's hardware; None if unknown.

    The container itself sees all cores of the machine, which it shares with other Spaces.
    """
    try:
        cores = float(_variable("CPU_CORES"))
    except ValueError:
        return None
    return cores if 0 < cores < float("inf") else None


def accelerator() -> str | None:
    """Return the name of the Space's accelerator, such as `t4-small`; None if there is none."""
    name = _variable("ACCELERATOR")
    return None if name.lower() in ("", "none") else name


def replaced_caches() -> dict[str, str]:
    """Return new values, in the home directory, for the variables that name a cache directory that is not writable.

    The usual case is `HF_HOME=/data/...` in a Space without persistent storage.
    """
    default = Path.home() / ".cache" / "huggingface"
    return {
        name: str(default / folder)
        for name, folder in _CACHES.items()
        if (path := _variable(name)) and not is_writable(Path(path).expanduser())
    }


def _variable(name: str) -> str:
    """Return a variable's value; empty if it is not set, or outside a Space."""
    return os.environ.get(name, "").strip() if os.environ.get("SPACE_ID") else ""
