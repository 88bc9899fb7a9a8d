"""The priority of processes that do work which others should not wait for, such as the start of a worker.

Knows nothing of these processes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

_NICER = 10
"""Such a process gets a tenth of what another one gets of a core that both want."""


def lower(pid: int) -> None:
    """Lower the priority of a process that was started just now, if it may raise it again by `restore`.

    Without CAP_SYS_NICE, or RLIMIT_NICE, it may not, and would stay slow for good.
    """
    if _may_raise():
        with contextlib.suppress(OSError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICER)


def lower_own() -> None:
    """Lower the priority of this process for good."""
    os.nice(_NICER)


def restore() -> None:
    """Give all threads of this process the priority of its parent."""
    wanted = os.getpriority(os.PRIO_PROCESS, os.getppid())
    if os.getpriority(os.PRIO_PROCESS, 0) == wanted:
        return
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or may not
            os.setpriority(os.PRIO_PROCESS, int(thread.name), wanted)


def _may_raise() -> bool:
    """Return whether a priority can be raised, by a try in a thread: on Linux, each has a priority of its own."""
    outcomes: list[bool] = []

    def attempt() -> None:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        try:
            os.setpriority(os.PRIO_PROCESS, 0, before + 1)
            os.setpriority(os.PRIO_PROCESS, 0, before)
        except OSError:
            return
        outcomes.append(True)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return bool(outcomes)
