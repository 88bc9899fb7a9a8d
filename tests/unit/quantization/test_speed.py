"""Whether a quantized network is fast enough to be worth it."""

from __future__ import annotations

import numpy as np
import pytest

from vit_api.quantization.speed import Pixels, measure

_DEFAULT_S = 0.6


class _Clock:
    """A clock that only the networks advance."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("ratio", "is_worth_it"), [(2.0, True), (1.21, True), (1.19, False), (0.5, False)])
def test_it_must_be_faster_by_a_fifth(ratio: float, *, is_worth_it: bool) -> None:
    """The figures are images/s in batches of eight; fewer images are repeated."""
    clock, sizes = _Clock(), set()

    def default(batch: Pixels) -> None:
        sizes.add(len(batch))
        clock.now += _DEFAULT_S

    def quantized(batch: Pixels) -> None:
        sizes.add(len(batch))
        clock.now += _DEFAULT_S / ratio

    speed = measure(quantized, default, "bfloat16", [np.zeros((2, 2, 3), np.uint8)] * 3, clock)
    assert speed.default_images_per_s == pytest.approx(8 / _DEFAULT_S)
    assert speed.ratio == pytest.approx(ratio)
    assert speed.is_worth_it is is_worth_it
    assert (speed.figures()["default_dtype"], sizes) == ("bfloat16", {8})
