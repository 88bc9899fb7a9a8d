"""Waits until a Space runs a revision. Knows nothing of how the revision got there, or of what comes after."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from deploy.hub_space import HubError, HubSpace, Runtime

BUSY = {"BUILDING", "RUNNING_BUILDING", "APP_STARTING", "RUNNING_APP_STARTING"}
FAILED = {"BUILD_ERROR", "RUNTIME_ERROR", "CONFIG_ERROR", "NO_APP_FILE", "PAUSED", "DELETING"}


class NotRunning(Exception):
    """The Space doesn't run the revision; the message says why, and where to look."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for what.

    Attributes:
        timeout_s: For the build and the start together.
        poll_s: Between two questions.
        stale_s: For so long, an error may still be the one of the revision before.
    """

    timeout_s: float = 3600.0
    poll_s: float = 5.0
    stale_s: float = 60.0


@dataclass(frozen=True)
class Watch:
    """Follows a Space.

    Attributes:
        space: The Space.
        patience: How long.
        log: Gets a line for each change of stage.
        clock: Seconds that never go back.
        sleep: Waits so many seconds.
    """

    space: HubSpace
    patience: Patience
    log: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def until_running(self, revision: str) -> None:
        """Return as soon as the Space runs this revision.

        `RUNNING` alone does not say so: until the build begins, it is the revision before that runs.

        Raises:
            NotRunning: The build or the start failed, or took too long.
            HubError: The hub refuses to tell.
        """
        started = self.clock()
        has_begun = False
        said = "nothing"
        while True:
            passed_s = self.clock() - started
            now, runtime = self._ask()
            if now != said:
                self.log(f"{passed_s:5.0f} s: {now}")
                said = now
            if runtime is not None:
                if runtime.stage == "RUNNING" and runtime.revision == revision:
                    return
                has_begun = has_begun or runtime.stage in BUSY
                is_ours = has_begun or runtime.revision == revision or passed_s >= self.patience.stale_s
                if runtime.stage in FAILED and is_ours:
                    which = "build" if runtime.stage == "BUILD_ERROR" else "container"
                    raise NotRunning(f"the Space ended in {runtime.stage}; its log: {self.space.page}?logs={which}")
            if passed_s >= self.patience.timeout_s:
                raise NotRunning(f"the Space does not run it after {self.patience.timeout_s:g} s, but is at: {said}")
            self.sleep(self.patience.poll_s)

    def _ask(self) -> tuple[str, Runtime | None]:
        """Return the stage in words, and what the hub said; a hub that is gone for a while is no failure."""
        try:
            runtime = self.space.runtime()
        except HubError as error:
            if not error.is_passing:
                raise
            return f"the hub can't be asked: {error}", None
        return f"{runtime.stage}, revision {(runtime.revision or 'unknown')[:12]}", runtime
