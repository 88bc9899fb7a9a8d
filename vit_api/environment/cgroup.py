"""Reads the limits of this process's cgroup and of all above it. Must not know what they are used for.

See cgroups(7). In a container, `/proc/self/cgroup` has the host's path, which is not visible there, or `/` in a
namespace of its own; the files are then those of the mount's root.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUPS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_UNLIMITED = 2**60
"""Version 1 has no word for "no limit", but a number near 2**63."""


def memory_limit(cgroups: Path = CGROUPS, mount: Path = MOUNT) -> int | None:
    """Return the smallest memory limit, in bytes; None if there is none."""
    limits = []
    for folder, is_v2 in _folders("memory", cgroups, mount):
        text = _read(folder / ("memory.max" if is_v2 else "memory.limit_in_bytes"))
        if text.isdecimal() and 0 < int(text) < _UNLIMITED:
            limits.append(int(text))
    return min(limits, default=None)


def cpu_limit(cgroups: Path = CGROUPS, mount: Path = MOUNT) -> float | None:
    """Return the smallest CPU quota, in cores; None if there is none."""
    limits = []
    for folder, is_v2 in _folders("cpu", cgroups, mount):
        names = ("cpu.max",) if is_v2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        numbers = " ".join(_read(folder / name) for name in names).split()
        if len(numbers) == 2 and all(number.isdecimal() and int(number) for number in numbers):  # not "max" or -1
            limits.append(int(numbers[0]) / int(numbers[1]))
    return min(limits, default=None)


def _folders(controller: str, cgroups: Path, mount: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of this process's cgroups and of all above them, and whether they are of version 2."""
    for line in _read(cgroups).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top = mount if (mount / "cgroup.controllers").exists() else mount / "unified"
        elif controller in controllers.split(","):
            top = next((top for top in (mount / controllers, mount / controller) if top.exists()), mount / controller)
        else:
            continue
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(top):
                yield folder, number == "0"


def _read(file: Path) -> str:
    """Return a file's content; empty if it can't be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
