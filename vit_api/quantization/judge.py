"""Judges a network by the gate, on images whose answers in float32 are known. Must not know how networks are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from vit_api.quantization.gate import Comparison, Probabilities, compare, probabilities

Pixels = NDArray[np.uint8]
Run = Callable[[Pixels], NDArray[np.float32]]
"""Maps pixels [batch, height, width, 3] to logits."""

BATCH_SIZE = 8
_BATCHES_BETWEEN_CHECKS = 8


class Judge:
    """Compares networks with a reference.

    Args:
        reference: The network in float32.
        images: Returns the images, in the same order each time.
        has_sigmoid: Whether the probabilities are sigmoids.
    """

    def __init__(self, reference: Run, images: Callable[[], Iterator[Pixels]], *, has_sigmoid: bool) -> None:
        self._images = images
        self._has_sigmoid = has_sigmoid
        self._expected = answers(reference, images(), has_sigmoid=has_sigmoid)

    def compare(self, run: Run, *, may_stop: bool = True) -> Comparison:
        """Return how far a network is from the reference.

        Args:
            run: The network.
            may_stop: Stop as soon as it fails the gate, however good the rest of the answers may be: the images not
                judged then count as equal.
        """
        found = self._expected.copy()
        at = 0
        for number, rows in enumerate(_by_batch(run, self._images(), has_sigmoid=self._has_sigmoid), 1):
            found[at : at + len(rows)] = rows
            at += len(rows)
            if may_stop and number % _BATCHES_BETWEEN_CHECKS == 0:
                so_far = compare(self._expected, found)
                if so_far.failures(min_images=0):
                    return so_far
        return compare(self._expected, found)


def answers(run: Run, images: Iterable[Pixels], *, has_sigmoid: bool) -> Probabilities:
    """Return a network's probabilities [images, classes]."""
    return np.concatenate(list(_by_batch(run, images, has_sigmoid=has_sigmoid)))


def _by_batch(run: Run, images: Iterable[Pixels], *, has_sigmoid: bool) -> Iterator[Probabilities]:
    batch: list[Pixels] = []
    for image in images:
        batch.append(image)
        if len(batch) == BATCH_SIZE:
            yield probabilities(run(np.stack(batch)), sigmoid=has_sigmoid)
            batch.clear()
    if batch:
        yield probabilities(run(np.stack(batch)), sigmoid=has_sigmoid)
