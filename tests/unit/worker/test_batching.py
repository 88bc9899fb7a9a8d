"""The batching policy, with a fake clock."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_api.worker.batching import BatchingPolicy


@pytest.mark.parametrize(
    ("size", "waited_s", "incoming", "expected"),
    [
        pytest.param(0, 0.0, 0, math.inf, id="empty"),
        pytest.param(0, 0.0, 5, math.inf, id="empty, images incoming"),
        pytest.param(1, 0.0, 0, 0.0, id="single image: at once"),
        pytest.param(31, 0.001, 0, 0.0, id="no other image incoming: at once"),
        pytest.param(32, 0.0, 9, 0.0, id="full: at once"),
        pytest.param(1, 0.005, 9, 0.0, id="waited long enough"),
        pytest.param(1, 0.5, 9, 0.0, id="waited too long already"),
        pytest.param(31, 0.002, 1, 0.003, id="images incoming: the rest of the wait"),
    ],
)
def test_rules(size: int, waited_s: float, incoming: int, expected: float) -> None:
    """The remaining wait follows from the size, the age and the incoming images, as documented."""
    policy = BatchingPolicy(max_batch_size=32, max_wait_s=0.005)
    wait = policy.remaining_wait_s(now=100.0, size=size, oldest_queued_at=100.0 - waited_s, incoming=incoming)
    assert wait == pytest.approx(expected)


def test_only_a_full_batch_is_staged() -> None:
    """A smaller one would start no sooner, and could no longer grow."""
    policy = BatchingPolicy(max_batch_size=32, max_wait_s=0.005)
    assert [policy.should_stage(waiting) for waiting in (0, 31, 32, 100)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("waiting", "decoding", "waited_s", "expected"),
    [
        pytest.param(20, 12, 0.0, True, id="all cores decode what fills the batch"),
        pytest.param(20, 12, 0.049, True, id="for less than ten times the wait"),
        pytest.param(20, 12, 0.05, False, id="for ten times the wait"),
        pytest.param(0, 64, -math.inf, False, id="nothing to compute"),
        pytest.param(32, 64, 0.0, False, id="full"),
        pytest.param(20, 11, 0.0, False, id="the batch will not be full"),
        pytest.param(30, 2, 0.0, False, id="cores are idle"),
    ],
)
def test_cores_are_left_to_decoding(waiting: int, decoding: int, waited_s: float, *, expected: bool) -> None:
    """Only where no core is idle, and the batch is fuller for it."""
    policy = BatchingPolicy(max_batch_size=32, max_wait_s=0.005, shared_cores=4)
    assert policy.should_leave_cores(waiting=waiting, decoding=decoding, waited_s=waited_s) == expected


def test_a_device_of_its_own_is_not_left_idle() -> None:
    """Decoding takes nothing from it."""
    policy = BatchingPolicy(max_batch_size=32, max_wait_s=0.005)
    assert not policy.should_leave_cores(waiting=20, decoding=64, waited_s=0.0)


@given(
    gaps=st.lists(st.floats(0, 0.01), min_size=1, max_size=100),
    max_batch_size=st.integers(1, 32),
    max_wait_s=st.floats(0, 0.02),
)
def test_simulated_arrivals(gaps: list[float], max_batch_size: int, max_wait_s: float) -> None:
    """For any arrivals, all images are sent in order, and no batch is too large or waits too long."""
    policy = BatchingPolicy(max_batch_size, max_wait_s)
    arrivals = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    now, next_arrival, sent = 0.0, 0, 0
    while sent < len(arrivals):
        while next_arrival < len(arrivals) and arrivals[next_arrival] <= now and next_arrival - sent < max_batch_size:
            next_arrival += 1
        size = next_arrival - sent
        oldest = arrivals[sent] if size else math.inf
        incoming = len(arrivals) - next_arrival
        wait = policy.remaining_wait_s(now=now, size=size, oldest_queued_at=oldest, incoming=incoming)
        if wait == 0:
            assert 0 < size <= max_batch_size
            assert now - oldest <= max_wait_s + 1e-9 or size == max_batch_size
            sent = next_arrival
        else:
            upcoming = arrivals[next_arrival] if next_arrival < len(arrivals) else math.inf
            assert min(now + wait, upcoming) > now
            now = min(now + wait, upcoming)
