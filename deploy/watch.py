"""Waits until the hub runs what was deployed. Must not change anything, or test what runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from deploy.hub import HubError


class NotRunning(Exception):
    """What was deployed does not run; the message says why, and where to look."""


class Runtime(Protocol):
    """What the hub reports; as text, a line for the log."""

    @property
    def is_busy(self) -> bool:
        """Whether a build, a start or an update is in progress."""

    @property
    def has_failed(self) -> bool:
        """Whether it will not run without another change."""

    def names(self, version: Any) -> bool:
        """Return whether the report says itself that it is of this version."""

    def runs(self, version: Any, is_new: bool) -> bool:
        """Return whether this version runs.

        Args:
            version: The deployed version.
            is_new: Whether the report is not of what ran before: until the hub has begun, it reports that.
        """


class Watched(Protocol):
    """A Space or an Endpoint.

    Attributes:
        kind: The word for it, in messages.
    """

    kind: str

    def runtime(self) -> Runtime:
        """Return the hub's report; raise `HubError`."""

    def log_page(self, runtime: Any) -> str:
        """Return the address of the log that explains a failure."""


@dataclass(frozen=True)
class Patience:
    """Time limits, in seconds.

    Attributes:
        timeout_s: For build and start together.
        poll_s: Between two requests.
        stale_s: How long the report may still be that of what ran before.
    """

    timeout_s: float = 3600.0
    poll_s: float = 5.0
    stale_s: float = 60.0


@dataclass(frozen=True)
class Watch:
    """Follows a Space or an Endpoint while it builds, starts or updates a version.

    Attributes:
        watched: The Space or Endpoint.
        patience: The time limits.
        log: Called with a line for each change of the report.
        clock: A monotonic clock, in seconds.
        sleep: Sleeps for a number of seconds.
    """

    watched: Watched
    patience: Patience
    log: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def until_running(self, version: Any) -> None:
        """Return as soon as this version runs.

        A report that something runs is not enough: until the hub has begun, it is of the previous version.

        Raises:
            NotRunning: The build or the start failed, or took too long.
            HubError: The hub rejected a request.
        """
        kind, has_begun = self.watched.kind, False
        for passed_s, runtime in self._runtimes(f"The {kind} does not run the new version"):
            has_begun = has_begun or runtime.is_busy
            is_new = has_begun or runtime.names(version) or passed_s >= self.patience.stale_s
            if runtime.runs(version, is_new):
                return
            if runtime.has_failed and is_new:
                raise NotRunning(f"The {kind} ended in {runtime}: see its log, {self.watched.log_page(runtime)}.")

    def until_settled(self) -> Any:
        """Return the first report that nothing is in progress.

        Raises:
            NotRunning: That took too long.
            HubError: The hub rejected a request.
        """
        for _, runtime in self._runtimes(f"The {self.watched.kind} is still being changed"):
            if not runtime.is_busy:
                return runtime
        raise AssertionError("unreachable: the reports end with an exception")

    def _runtimes(self, too_late: str) -> Iterator[tuple[float, Runtime]]:
        """Yield the time that has passed and the hub's report, again and again until the time is up."""
        started, logged = self.clock(), ""
        while True:
            passed_s = self.clock() - started
            now, runtime = self._ask()
            if now != logged:
                self.log(f"{passed_s:5.0f} s: {now}")
                logged = now
            if runtime is not None:
                yield passed_s, runtime
            if passed_s >= self.patience.timeout_s:
                raise NotRunning(f"{too_late} after {self.patience.timeout_s:g} s: {logged}.")
            self.sleep(self.patience.poll_s)

    def _ask(self) -> tuple[str, Runtime | None]:
        """Return the report as text, and itself; None for a failure of the hub that may pass."""
        try:
            runtime = self.watched.runtime()
        except HubError as error:
            if not error.is_transient:
                raise
            return f"the hub is unavailable: {error}", None
        return str(runtime), runtime
