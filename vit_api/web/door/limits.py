"""What connections may take: times, rates and descriptors. Must not know how a limit is enforced."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import NamedTuple

_RESERVED_DESCRIPTORS = 48
"""Kept free for what is not a client: Redis, traces, files, and a burst of new connections."""


class DoorLimits(NamedTuple):
    """The limits of a process's connections.

    Attributes:
        header_timeout_s: Seconds for the request line and the headers.
        body_timeout_s: Seconds between two reads of a body.
        keep_alive_s: Seconds that a connection may idle between two requests.
        max_connections: Number of connections; beyond it the idlest is closed.
        min_body_bytes_per_s: The rate that a body must keep, averaged over any `rate_window_s`.
        rate_window_s: See above.
        linger_s: Seconds that the rest of a refused body is read and discarded, so that its client reads the answer
            rather than a reset; RFC 9112, section 9.6.
        linger_idle_s: The same, between two reads.
        write_timeout_s: Seconds in which a client must read some of its answer.
        drain_s: The most that any of the above may hold up the end of the process, except a body's times.
    """

    header_timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    keep_alive_s: float = 75.0
    max_connections: int = 1024
    min_body_bytes_per_s: int = 16 * 1024
    rate_window_s: int = 10
    linger_s: float = 30.0
    linger_idle_s: float = 5.0
    write_timeout_s: float = 10.0
    drain_s: float = 1.0


def max_connections() -> int:
    """Return how many connections this process can have, by its descriptors. To be called before the first one."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    return max(1, limit - in_use - _RESERVED_DESCRIPTORS)
