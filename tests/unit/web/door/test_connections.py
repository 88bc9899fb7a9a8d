"""The timer of all connections, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from vit_api.web.door.connections import Connections, Wait
from vit_api.web.door.limits import DoorLimits


class FakeLoop:
    """An event loop whose time the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        """Return the time in seconds."""
        return self.now

    def call_later(self, delay_s: float, call: Callable[[], None]) -> object:
        """Call it once that much time has passed."""
        self._calls.append((self.now + delay_s, call))
        return self._calls[-1]

    def advance(self, seconds: float) -> None:
        """Let time pass, and call what is due, in order."""
        end = self.now + seconds
        while due := [one for one in self._calls if one[0] <= end]:
            first = min(due, key=lambda one: one[0])
            self._calls.remove(first)
            self.now = first[0]
            first[1]()
        self.now = end


class SilentConnection:
    """A connection whose client sends nothing.

    Args:
        connections: All connections.
        failure: What is raised when its time is up.
    """

    def __init__(self, connections: Connections, failure: Exception | None = None) -> None:
        self.wait: Wait | None = None
        self.since = 0.0
        self.received_bytes = 0
        self.rate_samples: list[int] = []
        self.unread_bytes = 0
        self.linger_until = 0.0
        self.is_closed = False
        self._connections = connections
        self._failure = failure

    def time_is_up(self) -> None:
        """Close, or fail."""
        if self._failure is not None:
            raise self._failure
        self.is_closed = True
        self._connections.remove(self)

    def count_unread(self) -> int:
        """Return 0."""
        return 0

    def abort(self) -> None:
        """Close."""
        self.time_is_up()


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.5, 60.0])
def test_a_connection_has_limits_however_late_it_is_made(seconds: float) -> None:
    """The loop is busy after it has accepted a connection, and looks at all connections before it makes this one."""
    loop = FakeLoop()
    connections = Connections(DoorLimits())
    assert connections.make_room(cast("asyncio.AbstractEventLoop", loop))
    loop.advance(seconds)
    connection = SilentConnection(connections)
    connections.add(connection)
    loop.advance(60.0)
    assert connection.is_closed


def test_a_connection_that_fails_to_close_does_not_keep_others_open() -> None:
    """Its error goes to the loop; the limits of others hold."""
    loop = FakeLoop()
    connections = Connections(DoorLimits(header_timeout_s=1.0, keep_alive_s=1.0))
    for _ in range(2):
        connections.make_room(cast("asyncio.AbstractEventLoop", loop))
    failing, other = SilentConnection(connections, RuntimeError("it is closed")), SilentConnection(connections)
    connections.add(failing)
    connections.add(other)
    with pytest.raises(RuntimeError):
        loop.advance(2.0)
    connections.remove(failing)
    loop.advance(2.0)
    assert other.is_closed
