"""Ends processes, with a limit on every wait.

While a GPU's driver hangs, not even SIGKILL ends a process that waits for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from vit_api.processes.signals import FINISH

_KILL_S = 10.0
"""Time for a killed process to end. A GPU's driver may take seconds to free its memory."""


def is_running(process: BaseProcess) -> bool:
    """Return whether a process that was started runs.

    To `is_alive`, one whose exit status was taken by something else in this process runs forever.
    """
    if not process.is_alive():
        return False
    assert process.pid is not None
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # or it is a child of multiprocessing's fork server
        return not wait([process.sentinel], 0)
    return True


def kill(process: BaseProcess) -> bool:
    """Kill a process, and return whether it ended."""
    return not end([process])


def request_finish(process: BaseProcess) -> None:
    """Ask an HTTP process to close the port and to finish the requests in flight."""
    if is_running(process):
        assert process.pid is not None
        os.kill(process.pid, FINISH)


def end(processes: Iterable[BaseProcess]) -> list[BaseProcess]:
    """Kill processes and wait until they have ended, with a limit on the total time.

    Not by SIGTERM, which has no effect on them: it may reach the whole process group before this process acts on it.

    Returns:
        The processes that are still alive.
    """
    alive = [process for process in processes if is_running(process)]
    for process in alive:
        process.kill()
    deadline = time.monotonic() + _KILL_S
    for process in alive:
        process.join(max(0.0, deadline - time.monotonic()))
    return [process for process in alive if is_running(process)]
