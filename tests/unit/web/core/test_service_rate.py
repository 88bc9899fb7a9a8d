"""The `Retry-After` estimate, with a fake clock."""

from __future__ import annotations

import pytest

from vit_api.web.core.service_rate import ServiceRate


class Clock:
    """Seconds that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rate(clock: Clock) -> ServiceRate:
    return ServiceRate(clock)


@pytest.mark.parametrize(
    ("per_s", "images", "seconds"), [(100, 250, 3), (100, 1, 1), (2, 64, 32), (0.2, 100, 60), (10_000, 1000, 1)]
)
def test_the_estimate_follows_the_rate(
    rate: ServiceRate, clock: Clock, per_s: float, images: int, seconds: int
) -> None:
    """Images in flight divided by the rate, between 1 s and 60 s."""
    rate.begin(images)
    for _ in range(2000):
        clock.now += 1 / per_s
        rate.begin()
        rate.finish()
    assert abs(rate.seconds_left() - seconds) <= 1


def test_an_idle_server_asks_for_the_minimum(rate: ServiceRate) -> None:
    assert rate.seconds_left() == 1


@pytest.mark.parametrize("idle_s", [0.0, 9.0, 3600.0])
def test_a_burst_on_an_idle_server_is_soon_over(rate: ServiceRate, clock: Clock, idle_s: float) -> None:
    """Time in which nothing was asked says nothing about the server's rate, however long it was."""
    rate.begin()
    rate.finish()
    clock.now += idle_s
    rate.begin(100)
    clock.now += 0.005
    assert rate.seconds_left() == 1


@pytest.mark.parametrize("images", [1, 5, 1000])
def test_a_server_that_does_not_answer(rate: ServiceRate, clock: Clock, images: int) -> None:
    """Without an answer, each image takes at least as long as the first has waited so far."""
    rate.begin(images)
    assert rate.seconds_left() == 1
    clock.now += 12
    assert rate.seconds_left() == min(60, 12 * images)
    clock.now += 100
    assert rate.seconds_left() == 60


def test_answers_that_have_stopped(rate: ServiceRate, clock: Clock) -> None:
    """Answers of longer than 10 s ago don't count."""
    rate.begin(1000)
    for _ in range(500):
        clock.now += 0.01
        rate.finish()
    assert rate.seconds_left() == 5
    clock.now += 30
    assert rate.seconds_left() == 60
