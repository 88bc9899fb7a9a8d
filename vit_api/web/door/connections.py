"""All connections of a process: which wait for what and since when. One timer serves all of them.

Closes those that wait too long, and the idlest when descriptors run out. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from vit_api.web.door.limits import DoorLimits

logger = logging.getLogger(__name__)

_TICK_S = 0.2
_SAMPLE_S = 1.0
_WARNING_INTERVAL_S = 60.0


class Wait(enum.IntEnum):  # integers are hashed faster than other members
    """What a connection waits for, when it is the client's turn."""

    HEAD = enum.auto()
    """The first request, or the rest of a head."""
    REQUEST = enum.auto()
    """The next request."""
    BODY = enum.auto()
    LINGER = enum.auto()
    """The end of what is discarded."""
    CLOSE = enum.auto()
    """The client to read the last of its answer."""


class Connection(Protocol):
    """A connection, as its limits see it.

    Attributes:
        wait: What it waits for; None if it is the server's turn.
        since: Since when, in seconds of the loop's clock.
        received_bytes: Bytes of the current body.
        rate_samples: `received_bytes` of the last seconds, one each.
        unread_bytes: Bytes that the client had not read when last looked at.
        linger_until: When to stop discarding.
    """

    wait: Wait | None
    since: float
    received_bytes: int
    rate_samples: list[int]
    unread_bytes: int
    linger_until: float

    def time_is_up(self) -> None:
        """React to the end of what it waited for."""

    def count_unread(self) -> int:
        """Return how many bytes the client has not read, beyond those in the kernel."""

    def abort(self) -> None:
        """Close at once."""


class Connections:
    """The connections of a process. For one event loop.

    Args:
        limits: What they may take.
        is_announced: Returns whether the whole server is about to stop, so that clients should disconnect.
        count_evicted: Called for each connection that is closed because descriptors ran out.

    Attributes:
        limits: See above.
        idle: Those that wait for their next request, the one that has waited for the longest first.
        is_stopping: Whether the process is being stopped; then clients have little time to finish.
    """

    def __init__(
        self,
        limits: DoorLimits,
        is_announced: Callable[[], bool] = lambda: False,
        count_evicted: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits = limits
        self.is_stopping = False
        self._is_announced = is_announced
        self._waiting: dict[Wait, OrderedDict[Connection, None]] = {wait: OrderedDict() for wait in Wait}
        self.idle = self._waiting[Wait.REQUEST]
        self._blocked: dict[Connection, float] = {}
        self._count_evicted = count_evicted
        self._open: set[Connection] = set()
        self._expected = 0
        self._warned_at = -_WARNING_INTERVAL_S
        self._evicted = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._next_sample_at = 0.0

    @property
    def is_draining(self) -> bool:
        """Whether the server is shutting down, so that each answer is the last one of its connection."""
        return self.is_stopping or self._is_announced()

    def make_room(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Prepare for a connection that is about to be accepted; return whether there is room for it."""
        self._loop = loop
        self._start_timer()
        self._expected += 1
        has_room = len(self._open) + self._expected <= self.limits.max_connections
        return has_room or self._evict(loop.time())

    def add(self, connection: Connection) -> None:
        """Add a connection that was accepted."""
        self._expected = max(0, self._expected - 1)
        self._open.add(connection)
        self._start_timer()  # it may have stopped since `make_room`
        self.await_client(connection, Wait.HEAD)

    def remove(self, connection: Connection) -> None:
        """Remove a connection that is closed."""
        self._open.discard(connection)
        self._blocked.pop(connection, None)
        if connection.wait is not None:
            del self._waiting[connection.wait][connection]
            connection.wait = None

    def await_client(self, connection: Connection, wait: Wait | None) -> None:
        """Record that from now on a connection waits for its client; None: it does not any more."""
        if connection.wait is wait:
            if wait is not None:
                self._waiting[wait].move_to_end(connection)
        else:
            if connection.wait is not None:
                del self._waiting[connection.wait][connection]
            connection.wait = wait
            if wait is not None:
                self._waiting[wait][connection] = None
        assert self._loop is not None
        connection.since = self._loop.time()

    def block(self, connection: Connection, is_blocked: bool) -> None:
        """Record whether a client leaves more unread than may be kept for it."""
        if is_blocked:
            assert self._loop is not None
            self._blocked[connection] = self._loop.time()
            connection.unread_bytes = connection.count_unread()
        else:
            self._blocked.pop(connection, None)

    def _limit_of(self, wait: Wait) -> float:
        limits = self.limits
        seconds = {
            Wait.HEAD: limits.header_timeout_s,
            Wait.REQUEST: limits.keep_alive_s,
            Wait.BODY: limits.body_timeout_s,
            Wait.LINGER: limits.linger_idle_s,
            Wait.CLOSE: limits.write_timeout_s,
        }[wait]
        return seconds if wait is Wait.BODY or not self.is_stopping else min(seconds, limits.drain_s)

    def _start_timer(self) -> None:
        assert self._loop is not None
        if self._timer is None:
            self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        assert self._loop is not None
        self._timer = None
        if self._open:
            self._start_timer()  # first, so that a failure below does not stop it
        now = self._loop.time()
        self._expected = 0  # some may have failed to be accepted
        for wait, waiting in self._waiting.items():
            oldest = now - self._limit_of(wait)
            for connection in list(_until(waiting, oldest)):
                connection.time_is_up()
        for connection in [one for one in self._waiting[Wait.LINGER] if now > one.linger_until]:
            connection.time_is_up()
        self._abort_blocked(now)
        if now >= self._next_sample_at:
            self._next_sample_at = now + _SAMPLE_S
            self._check_rates()

    def _check_rates(self) -> None:
        window = self.limits.rate_window_s
        for connection in list(self._waiting[Wait.BODY]):
            samples = connection.rate_samples
            samples.append(connection.received_bytes)
            least = window * self.limits.min_body_bytes_per_s
            if len(samples) > window and samples[-1] - samples.pop(0) < least:
                connection.time_is_up()

    def _abort_blocked(self, now: float) -> None:
        limit_s = self.limits.write_timeout_s
        if self.is_stopping:
            limit_s = min(limit_s, self.limits.drain_s)
        for connection, since in list(self._blocked.items()):
            if now - since > limit_s:
                unread = connection.count_unread()
                if unread < connection.unread_bytes:
                    connection.unread_bytes = unread
                    self._blocked[connection] = now
                else:
                    connection.abort()

    def _evict(self, now: float) -> bool:
        """Close the connection whose client has been silent for the longest; return whether there is one."""
        oldest = [next(iter(waiting)) for waiting in self._waiting.values() if waiting]
        self._warn(now)
        self._count_evicted()
        if not oldest:
            return False
        victim = min(oldest, key=lambda connection: connection.since)
        self.await_client(victim, None)
        victim.abort()
        return True

    def _warn(self, now: float) -> None:
        self._evicted += 1
        if now - self._warned_at >= _WARNING_INTERVAL_S:
            logger.warning(
                "more than %d connections: closing the idlest (%d so far); raise the limit of open files",
                *(self.limits.max_connections, self._evicted),
            )
            self._warned_at = now


def _until(waiting: OrderedDict[Connection, None], oldest: float) -> list[Connection]:
    """Return those that have waited since `oldest` or longer; they are in the order of their times."""
    found = []
    for connection in waiting:
        if connection.since > oldest:
            break
        found.append(connection)
    return found
