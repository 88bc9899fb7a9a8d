"""When a Space counts as running, and when as failed; with a fake clock and without a hub."""

from __future__ import annotations

from collections import deque

import pytest

from deploy.hub import HubError, Login
from deploy.hub_space import HubSpace, Runtime
from deploy.watch import NotRunning, Patience, Watch


class _ScriptedSpace(HubSpace):
    """A Space that reports the given runtimes, one after the other; the last one repeats."""

    def __init__(self, *reports: Runtime) -> None:
        super().__init__("org/space", Login("hf_token"))
        self.reports = deque(reports)

    def runtime(self) -> Runtime:
        return self.reports[0] if len(self.reports) == 1 else self.reports.popleft()


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def _watch(*reports: Runtime) -> tuple[Watch, _Clock]:
    clock = _Clock()
    return Watch(_ScriptedSpace(*reports), Patience(), lambda _: None, clock, clock.sleep), clock


def test_running_means_running_this_revision() -> None:
    """Until the build starts, the hub reports the previous revision."""
    old, new = Runtime("RUNNING", "old"), Runtime("RUNNING", "new")
    watch, clock = _watch(old, old, new)
    watch.until_running("new")
    assert clock.now == 2 * Patience.poll_s


def test_an_error_of_the_previous_revision_is_ignored() -> None:
    """The hub reports its stage until the build starts."""
    watch, _ = _watch(Runtime("BUILD_ERROR", "old"), Runtime("BUILDING", "old"), Runtime("RUNNING", "new"))
    watch.until_running("new")


def test_an_error_that_stays_is_a_failure() -> None:
    """The build may have ended between two requests."""
    watch, clock = _watch(Runtime("BUILD_ERROR", None))
    with pytest.raises(NotRunning, match=r"BUILD_ERROR.*logs=build"):
        watch.until_running("new")
    assert clock.now == Patience.stale_s


def test_a_rejected_request_ends_the_wait() -> None:
    """The token was revoked: another request would not help."""
    watch, clock = _watch(Runtime("BUILDING", None))

    def refuse() -> Runtime:
        raise HubError("The hub responded with status 403.", is_transient=False)

    watch.watched.runtime = refuse  # type: ignore[method-assign]
    with pytest.raises(HubError, match="403"):
        watch.until_running("new")
    assert clock.now == 0
