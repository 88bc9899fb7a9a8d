"""The two classes of urgency. Knows nothing of what asks for a class, nor of what it changes."""

from __future__ import annotations

import enum


class Urgency(enum.IntEnum):
    """How urgent a request is."""

    NORMAL = 0
    """The class of requests that do not say: their images come first."""
    LOW = 1
    """Their images take what the others leave, and a share of their own, so that they never starve."""


LABELS = tuple(urgency.name.lower() for urgency in Urgency)
"""The name of each class in metrics and logs, by its number."""
