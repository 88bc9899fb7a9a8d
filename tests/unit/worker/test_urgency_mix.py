"""How many images of low urgency a batch takes, on devices whose times are given."""

from __future__ import annotations

import math

import pytest

from vit_api.worker.urgency_mix import BatchTimes, UrgencyMix


def _mix(fixed_s: float, per_image_s: float, sizes: tuple[int, ...] = (1, 2, 4, 8)) -> UrgencyMix:
    """Return a mix that knows a device whose batches take a fixed time and a time for each image."""
    mix = UrgencyMix(32)
    for size in sizes:
        mix.observe(size, fixed_s + size * per_image_s)
    mix.count_normal(1, now=100.0)
    return mix


@pytest.mark.parametrize(
    ("fixed_s", "per_image_s", "room"),
    [
        pytest.param(0.0, 0.01, 1, id="a time for each image: an eighth of eight"),
        pytest.param(0.0, 1.0, 1, id="however long it is"),
        pytest.param(0.008, 0.0, 1000, id="a fixed time: as many as fit"),
        pytest.param(0.008, 0.0002, 6, id="mostly fixed: an eighth of its time"),
    ],
)
def test_low_images_lengthen_a_batch_by_an_eighth(fixed_s: float, per_image_s: float, room: float) -> None:
    """By what batches of each size took."""
    assert min(1000, _mix(fixed_s, per_image_s).low_room(8, 0, now=100.0)) == pytest.approx(room, rel=0.01)


def test_one_fits_while_nothing_is_known() -> None:
    """Then batches of another size become known."""
    for mix in (UrgencyMix(32), _mix(0.1, 0.1, sizes=(4, 4, 4))):
        mix.count_normal(1, now=100.0)
        assert mix.low_room(1, 0, now=100.0) == 1
        assert mix.low_room(1, 1, now=100.0) == 0


def test_a_single_image_gets_no_company_that_doubles_its_time() -> None:
    """Where each image takes as long; while none of normal urgency waits, one of low urgency is a batch."""
    mix = _mix(0.0, 0.01)
    assert mix.low_room(1, 0, now=100.0) < 1
    assert mix.low_room(0, 0, now=100.0) == 1
    assert mix.low_room(0, 1, now=100.0) == 0


def test_others_are_expected_for_a_while() -> None:
    """Then batches of low urgency are as large as they can be."""
    mix = _mix(0.0, 0.01)
    assert mix.low_room(0, 0, now=101.0) == 1
    assert mix.low_room(0, 0, now=110.0) == math.inf


def test_the_line_follows_a_device_that_changes() -> None:
    """Older batches count less."""
    times = BatchTimes()
    for _ in range(100):
        for size in (1, 8):
            times.observe(size, 1.0 * size)
    for _ in range(400):
        for size in (1, 8):
            times.observe(size, 0.01)
    assert times.growth(8, 0.25) > 32


def test_a_share_is_kept_in_any_mix() -> None:
    """After seven others one comes first, and what is due does not add up for ever."""
    mix = UrgencyMix(32)
    for _ in range(6):
        mix.count_share(1, 0)
    assert mix.due() == 0
    mix.count_share(2, 0)
    assert mix.due() == 1
    mix.count_share(0, 1)
    assert mix.due() == 0
    mix.count_share(10_000, 0)
    assert mix.due() == 4
