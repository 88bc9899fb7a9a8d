"""Adds up what a command and all its descendants use, whichever process groups they are in, as Ray's are not in one."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Self

_PPID, _UTIME, _STIME, _STARTED = 1, 11, 12, 19
"""After the process's name in its `stat`; see proc(5)."""
_EVERY_S = 0.2


class ProcessTree:
    """Follows a process's descendants from now until `close`, in a thread.

    A process counts until it was last seen: up to a fifth of a second before its end is not counted.

    Args:
        root: The process's id.
    """

    def __init__(self, root: int) -> None:
        self._tracked = {root}
        self._seconds: dict[tuple[int, str], float] = {}
        self._living: set[int] = {root}
        self._is_closed = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed.set()
        self._thread.join()
        self._look()

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes that were seen."""
        self._look()
        with self._lock:
            return sum(self._seconds.values())

    def memory_bytes(self) -> int:
        """Return the memory of the living processes; what several share counts once."""
        with self._lock:
            living = list(self._living)
        return sum(map(_proportional_bytes, living))

    def living(self) -> set[int]:
        """Return the ids of the processes that were alive when they were last looked for."""
        with self._lock:
            return set(self._living)

    def _follow(self) -> None:
        while not self._is_closed.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        stats = _all_stats()
        with self._lock:
            before = -1
            while before != len(self._tracked):  # children of children
                before = len(self._tracked)
                self._tracked |= {pid for pid, fields in stats.items() if int(fields[_PPID]) in self._tracked}
            self._living = {pid for pid in self._tracked if pid in stats}
            self._tracked &= stats.keys()  # an id may be used again
            for pid in self._living:
                ticks = int(stats[pid][_UTIME]) + int(stats[pid][_STIME])
                self._seconds[pid, stats[pid][_STARTED]] = ticks / os.sysconf("SC_CLK_TCK")


def _all_stats() -> dict[int, list[str]]:
    """Return the fields after the name of each process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
    return found


def _proportional_bytes(pid: int) -> int:
    """Return a process's resident memory, of which shared pages count in equal parts; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
