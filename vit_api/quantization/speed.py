"""Measures whether a quantized network is worth it: its images/s beside those of the default dtype, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

BATCH_SIZE = 8
MIN_RATIO = 1.2
"""From which ratio at this batch size int8 is worth its rounding."""
_ROUNDS = 5
_TURN_S = 0.5


@dataclass(frozen=True)
class Speed:
    """The speed of the model alone, without a server.

    Attributes:
        batch_size: Images in a batch.
        images_per_s: Of the quantized network.
        default_dtype: The dtype that a server takes by default on this CPU.
        default_images_per_s: Of the checkpoint in that dtype.
        ratio: The median of the ratios of adjacent turns.
    """

    batch_size: int
    images_per_s: float
    default_dtype: str
    default_images_per_s: float
    ratio: float

    @property
    def is_worth_it(self) -> bool:
        """Whether the quantized network is faster by enough."""
        return self.ratio >= MIN_RATIO

    def figures(self) -> dict[str, Any]:
        """Return the attributes, rounded, and whether it is worth it, as in files."""
        rounded = {name: round(value, 2) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return rounded | {"is_worth_it": self.is_worth_it}


def measure(
    quantized: Callable[[Pixels], object],
    default: Callable[[Pixels], object],
    default_dtype: str,
    images: Sequence[Pixels],
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Run both in turns on a batch, since a machine's speed changes, and return the medians.

    Args:
        quantized: The quantized network.
        default: The checkpoint in the default dtype.
        default_dtype: Its name.
        images: Some images; repeated if they are fewer than a batch.
        clock: Returns seconds.
    """
    batch = np.stack([images[number % len(images)] for number in range(BATCH_SIZE)])
    turns = [(_per_s(quantized, batch, clock), _per_s(default, batch, clock)) for _ in range(_ROUNDS)]
    return Speed(
        BATCH_SIZE,
        statistics.median(ours for ours, _ in turns),
        default_dtype,
        statistics.median(others for _, others in turns),
        statistics.median(ours / others for ours, others in turns),
    )


def _per_s(run: Callable[[Pixels], object], batch: Pixels, clock: Callable[[], float]) -> float:
    """Return images/s after a call that warms it up: the threads of the other one may still be busy waiting."""
    run(batch)
    done, began = 0, clock()
    while not done or clock() - began < _TURN_S:
        run(batch)
        done += len(batch)
    return done / (clock() - began)
