"""The gate that a quantized network must pass: how far its answers may be from float32's.

Must not know how a network is quantized or run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_TOP_1 = 0.99
"""Minimum share of images whose top class is the same."""
MIN_CLEAR_TOP_1 = 0.999
"""The same of images whose first two classes are apart."""
CLEAR_MARGIN = 0.1
"""From which difference of probability the first two classes are apart."""
MAX_MEAN_DIFFERENCE = 0.005
"""Maximum mean difference of the probability of the reference's top class."""
MIN_IMAGES = 1000

Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """How far a network's answers are from the reference's.

    Attributes:
        images: Number of images.
        top_1_agreement: Share of images whose top class is the same.
        clear_images: Number of images whose first two classes are `CLEAR_MARGIN` apart in the reference.
        clear_top_1_agreement: The first share, of these; 1 if there are none.
        mean_difference: Mean difference of the probability of the reference's top class.
        largest_difference: Largest difference of any probability.
    """

    images: int
    top_1_agreement: float
    clear_images: int
    clear_top_1_agreement: float
    mean_difference: float
    largest_difference: float

    def figures(self) -> dict[str, Any]:
        """Return the attributes, rounded, as in files."""
        return {name: round(value, 6) for name, value in asdict(self).items()}

    def failures(self, min_images: int = MIN_IMAGES) -> list[str]:
        """Return what does not pass the gate, a sentence each; none if it passes."""
        found = []
        if self.images < min_images:
            found.append(f"Only {self.images} images were judged; the gate takes {min_images:,}.")
        if not self.top_1_agreement >= MIN_TOP_1:
            found.append(
                f"The top class is the same for {self.top_1_agreement:.2%} of the images, not {MIN_TOP_1:.0%}."
            )
        if not self.clear_top_1_agreement >= MIN_CLEAR_TOP_1:
            found.append(
                f"Where the first two classes are {CLEAR_MARGIN} apart, the top class is the same for "
                f"{self.clear_top_1_agreement:.2%} of the images, not {MIN_CLEAR_TOP_1:.1%}."
            )
        if not self.mean_difference <= MAX_MEAN_DIFFERENCE:
            found.append(f"The mean difference is {self.mean_difference:.4f}, above {MAX_MEAN_DIFFERENCE}.")
        return found


def probabilities(logits: NDArray[np.float32], *, sigmoid: bool) -> Probabilities:
    """Return the probabilities [images, classes] of logits: each class's own by a sigmoid, or by a softmax."""
    exact = logits.astype(np.float64)
    if sigmoid:
        return 1 / (1 + np.exp(-exact))
    powers = np.exp(exact - exact.max(axis=1, keepdims=True))
    total: Probabilities = powers / powers.sum(axis=1, keepdims=True)
    return total


def compare(expected: Probabilities, found: Probabilities) -> Comparison:
    """Return how far probabilities [images, classes] are from the reference's."""
    rows, top = np.arange(len(expected)), expected.argmax(axis=1)
    agrees = top == found.argmax(axis=1)
    # A single class has no second one, and is never swapped.
    margins = np.ones(len(expected)) if expected.shape[1] == 1 else np.diff(np.sort(expected, axis=1)[:, -2:])[:, 0]
    is_clear = margins >= CLEAR_MARGIN
    differences = np.abs(expected - found)
    return Comparison(
        len(expected),
        float(agrees.mean()),
        int(is_clear.sum()),
        float(agrees[is_clear].mean()) if is_clear.any() else 1.0,
        float(differences[rows, top].mean()),
        float(differences.max()),
    )
