"""Finds a place for caches where the home directory can't be written. Must not know what is cached.

OpenShift runs containers as an arbitrary user with group 0, whose home directory is `/` or unset; a root file system
may be read-only. Libraries keep their caches below `HOME`, and some fail without one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

_HUB_HOME = "HF_HOME"


def provide_home(environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Set `HOME` to a directory below the temporary one if `~/.cache` can't be written; return it, or None if it can.

    A hub cache in the old home directory is still read.
    """
    home = _home(environment)
    if home is not None and is_writable(home / ".cache"):
        return None
    try:
        folder = _own_folder()
    except OSError:  # nothing can be written at all; what needs a file will say so
        return None
    if home is not None and (cached := home / ".cache" / "huggingface").is_dir():
        environment.setdefault(_HUB_HOME, str(cached))
    environment["HOME"] = str(folder)
    return str(folder)


def replaced_hub_caches(model: str, environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Return new values for variables of the hub's cache, if it can't be written and does not have a model.

    Args:
        model: The model's id.
        environment: The process's variables.
    """
    hub_home = environment.get(_HUB_HOME)
    cache = environment.get("HF_HUB_CACHE") or (f"{hub_home}/hub" if hub_home else "")
    if not cache or is_writable(Path(cache)) or (Path(cache) / f"models--{model.replace('/', '--')}").is_dir():
        return {}
    home = _home(environment)
    if home is None or not is_writable(home / ".cache"):
        return {}
    default = home / ".cache" / "huggingface"
    replaced = {_HUB_HOME: str(default), "HF_HUB_CACHE": str(default / "hub")}
    return {name: value for name, value in replaced.items() if environment.get(name)}


def is_writable(directory: Path) -> bool:
    """Return whether this process can write to a directory or, if it does not exist, to its nearest existing parent."""
    absolute = directory.absolute()
    nearest = next(path for path in (absolute, *absolute.parents) if os.access(path, os.F_OK))
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _home(environment: MutableMapping[str, str]) -> Path | None:
    if environment.get("HOME"):
        return Path(environment["HOME"])
    try:
        return Path.home()
    except RuntimeError:  # the user has no entry in the system's list
        return None


def _own_folder() -> Path:
    """Return a folder that no other user can write to, the same at the next start if possible: it may hold code."""
    folder, user = Path(tempfile.gettempdir()) / f"vit-api-{os.getuid()}", os.getuid()
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        status = folder.lstat()
        if folder.is_symlink() or status.st_uid != user or status.st_mode & 0o077:
            return Path(tempfile.mkdtemp(prefix="vit-api-"))
    return folder
