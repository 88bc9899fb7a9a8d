"""The warning of refused requests."""

from __future__ import annotations

import pytest

from vit_api.processes.refusal_log import REFUSALS, RefusalLog


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_one_warning_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """The first refusal is logged at once; those of the next minute are in one line at its end, with their causes."""
    totals, clock = {"overloaded": 0, "rate_limited": 0, "bad_image": 0}, Clock()
    log = RefusalLog(lambda: totals, clock)
    log.update()
    assert caplog.messages == []
    totals["overloaded"] = 3
    log.update()
    assert caplog.messages == ["Refused since the start: 3 overloaded"]
    totals |= {"overloaded": 10, "rate_limited": 9, "bad_image": 50}
    clock.now += 59.9
    log.update()
    assert len(caplog.messages) == 1
    clock.now += 0.2
    log.update()
    assert caplog.messages[1:] == ["Refused in the last 60 s: 9 rate_limited, 7 overloaded"]
    clock.now += 600
    log.update()
    assert len(caplog.messages) == 2


def test_what_is_no_fault_of_the_client_or_its_key_counts() -> None:
    """Invalid images are no refusals."""
    assert {"overloaded", "rate_limited", "unauthorized", "deadline_exceeded", "out_of_memory"} <= REFUSALS
    assert not {"bad_image", "unsupported_image", "internal", "not_found"} & REFUSALS
