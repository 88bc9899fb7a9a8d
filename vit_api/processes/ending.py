"""Ends processes, with a limit on every wait.

While a GPU's driver hangs, not even SIGKILL ends a process that waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from multiprocessing.process import BaseProcess

_KILL_S = 10.0
"""Time for a killed process to end. A GPU's driver may take seconds to free its memory."""


def kill(process: BaseProcess) -> bool:
    """Kill a process, and return whether it ended."""
    process.kill()
    process.join(_KILL_S)
    return not process.is_alive()


def end(processes: Iterable[BaseProcess], timeout_s: float) -> list[BaseProcess]:
    """Terminate processes, wait for them, and kill those that don't end in time.

    Returns:
        The processes that are still alive.
    """
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.terminate()
    _join(alive, timeout_s)
    alive = [process for process in alive if process.is_alive()]
    for process in alive:
        process.kill()
    _join(alive, _KILL_S)
    return [process for process in alive if process.is_alive()]


def _join(processes: Iterable[BaseProcess], timeout_s: float) -> None:
    """Wait for processes, with a limit on the total time."""
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
