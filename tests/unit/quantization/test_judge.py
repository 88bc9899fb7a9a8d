"""Judging a network by the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from vit_api.quantization.judge import Judge, Pixels

_IMAGES = 1000


def _images() -> Iterator[Pixels]:
    """Yield images whose first pixel is their number."""
    for number in range(_IMAGES):
        yield np.full((1, 1, 3), number % 256, np.uint8)


def _network(
    flipped: Callable[[int], bool] = lambda _: False,
) -> tuple[Callable[[Pixels], NDArray[np.float32]], list[int]]:
    """Return a network of two classes that takes some images for the other one, and the list of its batch sizes."""
    sizes: list[int] = []

    def run(batch: Pixels) -> NDArray[np.float32]:
        first = sum(sizes)
        sizes.append(len(batch))
        return np.array([[0, 2] if flipped(first + row) else [2, 0] for row in range(len(batch))], np.float32)

    return run, sizes


def test_a_network_that_must_fail_is_not_judged_to_the_end() -> None:
    """As soon as more images are wrong than may be, the others can't mend it."""
    judge = Judge(_network()[0], _images, has_sigmoid=False)
    run, sizes = _network(lambda number: number < 20)
    assert judge.compare(run).failures()
    assert sum(sizes) < 100
    run, sizes = _network(lambda number: number < 20)
    assert judge.compare(run, may_stop=False).top_1_agreement == pytest.approx(0.98)
    assert sum(sizes) == _IMAGES


def test_a_network_that_may_pass_is_judged_to_the_end() -> None:
    """Its last image is wrong, and counts."""
    judge = Judge(_network()[0], _images, has_sigmoid=False)
    run, sizes = _network(lambda number: number == _IMAGES - 1)
    compared = judge.compare(run)
    assert (compared.images, sum(sizes)) == (_IMAGES, _IMAGES)
    assert compared.top_1_agreement == pytest.approx(0.999)
    assert compared.failures() == []
