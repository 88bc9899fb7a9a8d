"""When a Space counts as running, and when as failed: by a clock of our own, without a hub."""

from __future__ import annotations

from collections import deque

import pytest

from deploy.hub_space import HubError, HubSpace, Runtime
from deploy.watch import NotRunning, Patience, Watch


class _Told(HubSpace):
    """A Space that says what it is told to."""

    def __init__(self, *told: Runtime) -> None:
        super().__init__("org/space", "hf_token")
        self.told = deque(told)

    def runtime(self) -> Runtime:
        return self.told[0] if len(self.told) == 1 else self.told.popleft()


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def _watch(*told: Runtime) -> tuple[Watch, _Clock]:
    clock = _Clock()
    return Watch(_Told(*told), Patience(), lambda _: None, clock, clock.sleep), clock


def test_running_means_running_this_revision() -> None:
    """Until the build begins, the hub tells of the revision before."""
    old, new = Runtime("RUNNING", "old"), Runtime("RUNNING", "new")
    watch, clock = _watch(old, old, new)
    watch.until_running("new")
    assert clock.now == 2 * Patience.poll_s


def test_an_old_error_is_not_this_revisions() -> None:
    """The revision before had failed, too; its stage is told until the build begins."""
    watch, _ = _watch(Runtime("BUILD_ERROR", "old"), Runtime("BUILDING", "old"), Runtime("RUNNING", "new"))
    watch.until_running("new")


def test_an_error_that_stays_is_believed() -> None:
    """Where the build was over between two questions."""
    watch, clock = _watch(Runtime("BUILD_ERROR", None))
    with pytest.raises(NotRunning, match=r"BUILD_ERROR.*logs=build"):
        watch.until_running("new")
    assert clock.now == Patience.stale_s


def test_a_refusal_ends_the_wait() -> None:
    """The token was taken away: asking again would not help."""
    watch, clock = _watch(Runtime("BUILDING", None))

    def refuse() -> Runtime:
        raise HubError("the hub answers 403", is_passing=False)

    watch.space.runtime = refuse  # type: ignore[method-assign]
    with pytest.raises(HubError, match="403"):
        watch.until_running("new")
    assert clock.now == 0
