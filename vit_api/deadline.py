"""How long a computation is wanted: as long as the last of those who wait for it."""

from __future__ import annotations

from collections.abc import Callable


class Deadline:
    """When the last waiter gives up. It moves while the computation runs, as others join the wait.

    Attributes:
        at: In seconds of the monotonic clock.
    """

    __slots__ = ("_follow", "at")

    def __init__(self, at: float) -> None:
        self.at = at
        self._follow: Callable[[float], None] | None = None

    def extend(self, at: float) -> None:
        """Wait until `at`, if that is later, and tell who follows."""
        if at > self.at:
            self.at = at
            if self._follow is not None:
                self._follow(at)

    def follow(self, callback: Callable[[float], None] | None) -> None:
        """Have `callback` called with each new time; None ends that."""
        self._follow = callback
