"""The HTTP processes' board: the last heartbeat of each, in shared memory. Knows nothing of what they do."""

from __future__ import annotations

import time

import numpy as np

from vit_api.ipc.shared_memory import SharedArrays


class HttpBoard:
    """The heartbeats of the HTTP processes. Created before the first fork.

    Args:
        processes: Number of HTTP processes.
    """

    def __init__(self, processes: int) -> None:
        self._shared = SharedArrays({"heartbeat_at": (np.float64, (processes,))})
        self._heartbeat_at = self._shared.view("heartbeat_at")

    def mark_starting(self, process: int) -> None:
        """Forget the heartbeats of the last process with this number. For the main process, before it starts one."""
        self._heartbeat_at[process] = 0.0

    def heartbeat(self, process: int) -> None:
        """Record that the event loop of `process` runs. For that process."""
        self._heartbeat_at[process] = time.monotonic()

    def heartbeat_at(self, process: int) -> float:
        """Return the time of the last heartbeat, in seconds of the monotonic clock; 0 if there was none yet."""
        return float(self._heartbeat_at[process])
