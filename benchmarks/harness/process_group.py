"""Reads from the system what a server's processes use. They make up one process group."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_ITS_OWN = slice(11, 13)
_WITH_CHILDREN = slice(11, 15)
"""utime, stime, cutime and cstime after the process's name; see proc(5)."""
_PARENT, _STARTED = 1, 19


def living(group: int) -> list[int]:
    """Return the ids of the living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = _fields(stat)[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


def kinds(group: int) -> dict[int, str]:
    """Return the kinds of our server's processes, `main`, `http`, `worker` or `other`, by their ids."""
    main_command = _command(group)
    found = {}
    for pid in living(group):
        with contextlib.suppress(OSError):
            command = _command(pid)
            if pid == group:
                found[pid] = "main"
            elif b"spawn_main" in command or _name(pid) == "worker":
                found[pid] = "worker"
            else:
                found[pid] = "http" if command == main_command else "other"  # forked or not
    return found


def cpu_seconds(group: int) -> float:
    """Return the CPU time of the living processes of a group and of their exited children."""
    return sum(_cpu_seconds(Path(f"/proc/{pid}/stat"), _WITH_CHILDREN) for pid in living(group))


def cpu_seconds_by_thread(pid: int) -> dict[int, float]:
    """Return the CPU time that each living thread of a process has used, by thread id."""
    return {int(task.name): _cpu_seconds(task / "stat") for task in Path(f"/proc/{pid}/task").iterdir()}


def _cpu_seconds(stat: Path, fields: slice = _ITS_OWN) -> float:
    """Return the CPU time in a process's or thread's `stat`, or 0 if it is gone."""
    try:
        ticks = _fields(stat)[fields]
    except OSError:
        return 0.0
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def parent_of(pid: int) -> int:
    """Return the id of a process's parent."""
    return int(_fields(Path(f"/proc/{pid}/stat"))[_PARENT])


def started_at(pid: int) -> int:
    """Return when a process was started, in clock ticks since the boot of the system."""
    return int(_fields(Path(f"/proc/{pid}/stat"))[_STARTED])


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, or 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def descriptors(pid: int) -> int:
    """Return the number of a process's open descriptors."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _fields(stat: Path) -> list[str]:
    """Return the fields after the process's name, which may contain spaces; see proc(5)."""
    return stat.read_text().rpartition(")")[2].split()


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().rstrip()


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
