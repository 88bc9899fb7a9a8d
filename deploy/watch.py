"""Waits until a Space runs a revision. Must not push anything, or test what runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from deploy.hub_space import HubError, HubSpace, Runtime

BUSY = {"BUILDING", "RUNNING_BUILDING", "APP_STARTING", "RUNNING_APP_STARTING"}
FAILED = {"BUILD_ERROR", "RUNTIME_ERROR", "CONFIG_ERROR", "NO_APP_FILE", "PAUSED", "DELETING"}


class NotRunning(Exception):
    """The Space does not run the revision; the message says why, and where its log is."""


@dataclass(frozen=True)
class Patience:
    """Time limits, in seconds.

    Attributes:
        timeout_s: For build and start together.
        poll_s: Between two requests.
        stale_s: How long a reported error may still be that of the previous revision.
    """

    timeout_s: float = 3600.0
    poll_s: float = 5.0
    stale_s: float = 60.0


@dataclass(frozen=True)
class Watch:
    """Follows a Space while it builds and starts a revision.

    Attributes:
        space: The Space.
        patience: The time limits.
        log: Called with a line for each change of stage.
        clock: A monotonic clock, in seconds.
        sleep: Sleeps for a number of seconds.
    """

    space: HubSpace
    patience: Patience
    log: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def until_running(self, revision: str) -> None:
        """Return as soon as the Space runs this revision.

        The stage `RUNNING` is not enough: until the build starts, it is that of the previous revision.

        Raises:
            NotRunning: The build or the start failed, or took too long.
            HubError: The hub rejected a request.
        """
        started = self.clock()
        has_begun = False
        reported = "nothing"
        while True:
            passed_s = self.clock() - started
            now, runtime = self._ask()
            if now != reported:
                self.log(f"{passed_s:5.0f} s: {now}")
                reported = now
            if runtime is not None:
                if runtime.stage == "RUNNING" and runtime.revision == revision:
                    return
                has_begun = has_begun or runtime.stage in BUSY
                is_ours = has_begun or runtime.revision == revision or passed_s >= self.patience.stale_s
                if runtime.stage in FAILED and is_ours:
                    which = "build" if runtime.stage == "BUILD_ERROR" else "container"
                    raise NotRunning(
                        f"The Space ended in {runtime.stage}: see its log, {self.space.page}?logs={which}."
                    )
            if passed_s >= self.patience.timeout_s:
                raise NotRunning(
                    f"The Space does not run the revision after {self.patience.timeout_s:g} s: {reported}."
                )
            self.sleep(self.patience.poll_s)

    def _ask(self) -> tuple[str, Runtime | None]:
        """Return the stage as text, and the hub's report; None for a failure of the hub that may pass."""
        try:
            runtime = self.space.runtime()
        except HubError as error:
            if not error.is_transient:
                raise
            return f"the hub is unavailable: {error}", None
        return f"{runtime.stage}, revision {(runtime.revision or 'unknown')[:12]}", runtime
