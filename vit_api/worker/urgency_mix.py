"""How many images of low urgency a batch takes beside the others. Pure; the clock is passed in.

Theory of operation
-------------------
Images of normal urgency come first. While there are any, those of low urgency fill only as much of a batch as lengthens
it by an eighth, by a line fitted to the times of the batches so far: many on a device that takes about as long for 8
images as for 1, and none on a device whose time is proportional to the size, where larger batches gain nothing. An
eighth is more than it seems: during a longer batch more images arrive, which lengthen the next one.

When none of normal urgency waits, but more are expected, a batch has as many of low urgency as lengthen a batch of one
by an eighth, and at least one. So they use what the device has left, and an image that arrives meanwhile does not wait
long for a batch of them. When no image of normal urgency has come for a while, they fill whole batches.

They never starve: after 7 images of normal urgency that were taken while they waited, one comes first.
"""

from __future__ import annotations

import math

LOW_SHARE = 8
"""One image in so many is of low urgency, if one waits, however many others do."""

_MAX_DELAY = 0.125
"""Part of its time by which images of low urgency may lengthen a batch."""

_PRESENT_S = 2.0
"""Seconds after an image of normal urgency for which others are expected."""

_MEMORY = 0.98
"""Weight of the last batch beside the present one: about 50 batches count."""


class BatchTimes:
    """Fit a line to the times of batches by their sizes: least squares, of which older ones count less."""

    def __init__(self) -> None:
        self._weight = self._sizes = self._seconds = self._squares = self._products = 0.0

    def observe(self, size: int, seconds: float) -> None:
        """Count a batch that took so long."""
        self._weight = self._weight * _MEMORY + 1
        self._sizes = self._sizes * _MEMORY + size
        self._seconds = self._seconds * _MEMORY + seconds
        self._squares = self._squares * _MEMORY + size * size
        self._products = self._products * _MEMORY + size * seconds

    def growth(self, size: int, share: float) -> float:
        """Return by how many images a batch may grow until it takes longer by a part of its time.

        Args:
            size: Its size, at least 1.
            share: That part.

        Returns:
            Images; 1 if batches of one size only are known, so that others become known; infinity if larger ones take
            no longer.
        """
        spread = self._weight * self._squares - self._sizes**2
        if spread <= 1e-9 * self._squares * max(self._weight, 1.0):
            return 1.0
        slope_s = (self._weight * self._products - self._sizes * self._seconds) / spread
        if slope_s <= 0:
            return math.inf
        seconds = (self._seconds + slope_s * (size * self._weight - self._sizes)) / self._weight
        return max(0.0, share * seconds / slope_s)


class UrgencyMix:
    """Decide how many images of low urgency join a batch. For one worker.

    Args:
        max_batch_size: Maximum number of images in a batch.
    """

    def __init__(self, max_batch_size: int) -> None:
        self._max_credit = max(1.0, max_batch_size / LOW_SHARE)
        self._credit = 0.0
        self._normal_at = -math.inf
        self._times = BatchTimes()

    def observe(self, size: int, seconds: float) -> None:
        """Learn how long a batch took."""
        self._times.observe(size, seconds)

    def due(self) -> int:
        """Return how many images of low urgency come before all others now."""
        return int(self._credit)

    def low_room(self, normal: int, low: int, now: float) -> float:
        """Return how many images of low urgency may join a batch that has some of both; its maximum size aside.

        Args:
            normal: Images of normal urgency in the batch.
            low: Images of low urgency in it.
            now: The time, in seconds of the monotonic clock.
        """
        if not normal and now - self._normal_at > _PRESENT_S:
            return math.inf
        room = self._times.growth(max(normal, 1), _MAX_DELAY)
        return max(0.0, (room if normal else max(1.0, room)) - low)

    def count_normal(self, normal: int, now: float) -> None:
        """Count images of normal urgency that joined a batch.

        Args:
            normal: Their number.
            now: The time, in seconds of the monotonic clock.
        """
        if normal:
            self._normal_at = now

    def count_share(self, normal: int, low: int) -> None:
        """Count images that joined a batch while some of low urgency were there."""
        credit = min(self._max_credit, self._credit + normal / (LOW_SHARE - 1)) - low
        self._credit = max(0.0, credit)
