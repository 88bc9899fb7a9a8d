"""The `Retry-After` estimate, with a fake clock."""

from __future__ import annotations

import pytest

from vit_api.web.core.service_rate import ServiceRate


@pytest.mark.parametrize(
    ("per_s", "images", "seconds"), [(100, 250, 3), (100, 1, 1), (2, 64, 32), (0.2, 100, 60), (10_000, 1000, 1)]
)
def test_the_estimate_follows_the_rate(per_s: float, images: int, seconds: int) -> None:
    """Queued images divided by the rate, between 1 s and 60 s."""
    now = 1000.0
    rate = ServiceRate(lambda: now)
    for _ in range(2000):
        now += 1 / per_s
        rate.add()
    assert abs(rate.seconds_for(images) - seconds) <= 1


def test_without_answers_lately() -> None:
    """Without recent answers the estimate is the maximum, unless the queue is empty."""
    now = 0.0
    rate = ServiceRate(lambda: now)
    assert (rate.seconds_for(5), rate.seconds_for(0)) == (60, 1)
    rate.add()
    now = 100.0
    assert rate.seconds_for(5) == 60
