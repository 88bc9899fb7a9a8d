"""What the classifier returns: a prediction as it is cached, where it comes from, and the timings of its computation.

Knows nothing of how a prediction is found or computed.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from typing import NamedTuple

from vit_api.ipc.records import AnswerRecord, Prediction


class Source(enum.Enum):
    """Where a result comes from; the values are what clients see."""

    HIT = "hit"
    """From a cache; the model did not run."""
    MISS = "miss"
    """The model ran for this upload."""
    COALESCED = "coalesced"
    """The model ran for an identical upload that was already in flight, in this HTTP process or in another one."""


class CachedPrediction:
    """A prediction in the form in which it is cached: packed, since a cache may hold millions of them.

    Attributes:
        packed: The prediction.
        rendered: Parts of responses that were made from it, by a key of each protocol's own; the last few.
    """

    __slots__ = ("packed", "rendered")

    _MAX_RENDERED = 2
    _MAX_RENDERED_BYTES = 512

    def __init__(self, prediction: Prediction) -> None:
        self.packed = prediction.pack()
        self.rendered: dict[Hashable, bytes] = {}

    @classmethod
    def from_packed(cls, packed: bytes) -> CachedPrediction:
        """Return a prediction that is packed already."""
        cached = cls.__new__(cls)
        cached.packed, cached.rendered = packed, {}
        return cached

    @property
    def prediction(self) -> Prediction:
        """The most probable classes, unpacked at each call."""
        return Prediction.unpack(self.packed)

    @property
    def size(self) -> int:
        """About how many bytes it takes, including what may be rendered later."""
        return len(self.packed) + self._MAX_RENDERED * self._MAX_RENDERED_BYTES

    def add_rendered(self, key: Hashable, rendered: bytes) -> None:
        """Cache a rendered part in place of the oldest, so that clients can't multiply the memory by asking for many.

        A long part, such as one of 20 classes with long names, is not cached.
        """
        if len(rendered) > self._MAX_RENDERED_BYTES:
            return
        if len(self.rendered) >= self._MAX_RENDERED:
            del self.rendered[next(iter(self.rendered))]
        self.rendered[key] = rendered


class ClassifierResult(NamedTuple):
    """The classification of one upload.

    Attributes:
        cached: The prediction.
        source: Where it comes from.
        answer: The worker's answer, with its timings; None for a hit, and if another HTTP process has it.
        decode_s: Seconds that decoding took, if the model ran.
        looked_up_at: When this process's cache was asked, in seconds of the monotonic clock.
    """

    cached: CachedPrediction
    source: Source
    answer: AnswerRecord | None = None
    decode_s: float = 0.0
    looked_up_at: float = 0.0

    @property
    def prediction(self) -> Prediction:
        """The most probable classes; unpacked at each call unless there is an answer."""
        return self.cached.prediction if self.answer is None else self.answer.prediction

    @property
    def own_answer(self) -> AnswerRecord | None:
        """The worker's answer if the model ran for this upload; a coalesced one has another upload's timings."""
        return self.answer if self.source is Source.MISS else None
