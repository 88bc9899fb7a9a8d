"""A process that is restarted whenever it ends or hangs: its restart budget, and how long it has been silent.

Knows nothing of what the process does.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

logger = logging.getLogger(__name__)

MAX_RESTARTS = 5
_RESTART_WINDOW_S = 60.0


class Silence:
    """How long a process has sent no heartbeat, as far as the main process was awake to see it.

    The age of the heartbeat would not do: when a machine or a container is suspended, or so busy that nothing runs, all
    processes stop alike, and none of them hangs.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._heartbeat_at: float | None = None

    def observe(self, heartbeat_at: float, awake_s: float) -> float:
        """Return how long the process has been silent, in seconds.

        Args:
            heartbeat_at: The time of its last heartbeat.
            awake_s: How long this process was awake since the last call.
        """
        if heartbeat_at == self._heartbeat_at:
            self.seconds += awake_s
        else:
            self._heartbeat_at = heartbeat_at
            self.seconds = 0.0
        return self.seconds


@dataclass
class Member:
    """A process that is restarted whenever it ends.

    Attributes:
        name: Its name in the log.
        start: Starts it.
        process: The current process.
        restarts: The times of its recent restarts.
        silence: How long the current process has been silent.
    """

    name: str
    start: Callable[[], BaseProcess]
    process: BaseProcess
    restarts: deque[float] = field(default_factory=deque)
    silence: Silence = field(default_factory=Silence)

    def restart(self) -> None:
        """Start the successor of a process that has ended."""
        self.silence = Silence()
        self.process = self.start()

    def reset_restart_budget(self, restarts: int) -> None:
        """Discard the last restarts, whose cause is known and gone."""
        for _ in range(min(restarts, len(self.restarts))):
            self.restarts.pop()

    def may_restart(self, *, worked: bool = True) -> bool:
        """Count a restart, and return whether the restart budget allows it.

        Args:
            worked: Whether the process had become ready; otherwise old restarts count, too.
        """
        now = time.monotonic()
        while worked and self.restarts and now - self.restarts[0] > _RESTART_WINDOW_S:
            self.restarts.popleft()
        self.restarts.append(now)
        return len(self.restarts) <= MAX_RESTARTS

    def log_end(self) -> None:
        """Log how the process has ended."""
        self.process.join()
        code = self.process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"
        logger.error("%s ended unexpectedly (%s)", self.name, how)
