"""The recent rate of answers, from which the `Retry-After` of a refused request is estimated."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

_MAX_ANSWERS = 256
_WINDOW_S = 10.0
_MAX_RETRY_S = 60


class ServiceRate:
    """Measure the rate of answers over the last seconds.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=_MAX_ANSWERS)

    def add(self) -> None:
        """Count an answer."""
        self._times.append(self._clock())

    def seconds_for(self, images: int) -> int:
        """Return in how many seconds, 1 to 60, so many images will be answered at the current rate."""
        now = self._clock()
        while self._times and now - self._times[0] > _WINDOW_S:
            self._times.popleft()
        if not self._times:
            return _MAX_RETRY_S if images else 1
        per_s = len(self._times) / max(now - self._times[0], 1e-3)
        return max(1, min(_MAX_RETRY_S, math.ceil(images / per_s)))
