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
    """Count images in flight, and measure the rate of answers over the last seconds in which there were some.

    Time without images in flight is no evidence of a slow server, and is left out.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=_MAX_ANSWERS)
        self._in_flight = 0
        self._busy_since = 0.0  # when the first of the images in flight came to an idle server

    def begin(self, images: int = 1) -> None:
        """Count images that are in flight from now on."""
        if not self._in_flight:
            self._busy_since = self._clock()
            self._times.clear()
        self._in_flight += images

    def finish(self) -> None:
        """Count the answer, or the failure, of an image in flight."""
        self._in_flight -= 1
        self._times.append(self._clock())

    def seconds_left(self) -> int:
        """Return in how many seconds, 1 to 60, all images in flight will be answered at the current rate."""
        now = self._clock()
        while self._times and now - self._times[0] > _WINDOW_S:
            self._times.popleft()
        # Without an answer, all that is known is that one takes longer than this.
        since = self._times[0] if self._times else self._busy_since
        s_per_image = (now - since) / max(1, len(self._times))
        return max(1, min(_MAX_RETRY_S, math.ceil(self._in_flight * s_per_image)))
