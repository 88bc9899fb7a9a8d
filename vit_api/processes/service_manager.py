"""Tells a service manager such as systemd when the server is ready, that it is alive, and when it stops; sd_notify(3).

Without `NOTIFY_SOCKET` in the environment, nothing here has an effect. Knows nothing of processes and boards.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_PINGS_PER_LIMIT = 3
"""How often the watchdog is told within its time limit; systemd recommends 2 or more."""


@dataclass(frozen=True)
class ServerStatus:
    """What a service manager wants to know.

    Attributes:
        is_ready: Whether requests are accepted.
        is_stopping: Whether the server shuts down.
        is_healthy: Whether it makes progress, so that it need not be killed.
        text: One line for people.
    """

    is_ready: bool
    is_stopping: bool
    is_healthy: bool
    text: str


class ServiceManager:
    """Send what has changed. For the main process.

    Args:
        status: Returns the server's current status.
        environment: The process's environment.
        clock: The monotonic clock.
    """

    def __init__(
        self,
        status: Callable[[], ServerStatus],
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._status = status
        self._clock = clock
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # in the abstract namespace
        self._ping_every_s = _watchdog_s(environment) / _PINGS_PER_LIMIT
        self._pinged_at = -float("inf")
        self._sent: set[str] = set()
        self._text = ""

    def update(self) -> None:
        """Send what is new, or was lost before; to be called several times within the watchdog's time limit."""
        if not self._address:
            return
        status, lines = self._status(), []
        states = (("READY=1", status.is_ready), ("STOPPING=1", status.is_stopping))
        new = [name for name, holds in states if holds and name not in self._sent]
        lines += new
        if status.text != self._text:
            lines.append(f"STATUS={status.text}")
        now = self._clock()
        is_due = self._ping_every_s > 0 and status.is_healthy and now - self._pinged_at >= self._ping_every_s
        if is_due:
            lines.append("WATCHDOG=1")
        if not lines or not self._send("\n".join(lines)):
            return
        self._sent.update(new)
        self._text = status.text
        if is_due:
            self._pinged_at = now

    def _send(self, message: str) -> bool:
        """Send a message; return False if the service manager does not read, which must not stop the supervision."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Return the watchdog's time limit in seconds; 0 if there is none, or it is for another process."""
    limit_us, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    return int(limit_us) / 1e6 if limit_us.isdecimal() and pid in ("", str(os.getpid())) else 0.0
