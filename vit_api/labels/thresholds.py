"""Thresholds of labels: from which score on a label is flagged. Knows nothing of models or HTTP."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vit_api.labels.json_setting import MAX_SHOWN
from vit_api.labels.label_map import LabelMapError, check_labels, read_label_map

OTHERS = "*"
"""Stands for every label that has no threshold of its own."""

SCORE_DIGITS = 6
"""Decimals of a score in responses."""

_DIGEST_CHARACTERS = 16
_EXAMPLE = '{"nsfw": 0.85, "*": 0.5}'

ThresholdsError = LabelMapError
"""Thresholds can't be read, or do not fit the model."""


@dataclass(frozen=True)
class Thresholds:
    """The threshold of each label.

    Attributes:
        by_label: Scores from 0 to 1; `OTHERS` is that of every other label. A label without one is never flagged.
        digest: Identifies the thresholds: the first 16 hexadecimal digits of the SHA-256 of their canonical JSON, in
            which names are sorted and numbers are floats.
        lowest: The lowest threshold of any label.
    """

    by_label: Mapping[str, float]
    digest: str = field(init=False)
    lowest: float = field(init=False)

    def __post_init__(self) -> None:
        canonical = json.dumps(dict(sorted(self.by_label.items())), separators=(",", ":"))
        object.__setattr__(self, "digest", hashlib.sha256(canonical.encode()).hexdigest()[:_DIGEST_CHARACTERS])
        object.__setattr__(self, "lowest", min(self.by_label.values()))

    @classmethod
    def load(cls, text: str, labels: Collection[str] | None = None) -> Thresholds:
        """Read thresholds.

        Args:
            text: JSON, such as `{"nsfw": 0.85, "*": 0.5}`, or the path of a file that has it.
            labels: Those of the model; None does not check that it has the named ones.

        Raises:
            ThresholdsError: They can't be read, a value is not a number from 0 to 1, or the model lacks a label.
        """
        thresholds = cls({name: _score_of(name, value) for name, value in read_label_map(text, _EXAMPLE).items()})
        if labels is not None:
            check_labels(thresholds.by_label, labels, OTHERS)
        return thresholds

    def of(self, label: str) -> float:
        """Return a label's threshold; infinity if it is never flagged."""
        return self.by_label.get(label, self.by_label.get(OTHERS, math.inf))

    def flags(self, label: str, score: float) -> bool:
        """Return whether a label with this score is flagged: rounded as in responses, it is at or above its threshold.

        Args:
            label: A label of the model.
            score: Its probability, from 0 to 1.
        """
        return round(score, SCORE_DIGITS) >= self.of(label)

    def flags_any(self, labels: Sequence[str], scores: Sequence[float]) -> bool:
        """Return whether any label is flagged.

        Args:
            labels: Labels of the model.
            scores: Their probabilities, in the same order.
        """
        return any(map(self.flags, labels, scores))


def _score_of(label: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ThresholdsError(f"The threshold of {label[:MAX_SHOWN]!r} should be a number from 0 to 1")
    return float(value)
