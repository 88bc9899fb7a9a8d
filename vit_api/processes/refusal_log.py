"""Logs how many requests were refused, once a minute at most. For the main process, which sees the counts of all.

Without it, an operator sees nothing of a full queue or of a client without a key unless the access log is on.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping

from vit_api import metrics
from vit_api.errors import error_classes
from vit_api.ipc.metrics_board import MetricsBoard

logger = logging.getLogger(__name__)

_INTERVAL_S = 60.0
_STATUSES = (401, 403, 429, 503, 504)
REFUSALS = frozenset(kind.code for kind in error_classes() if kind.status in _STATUSES)
"""Codes of errors by which a server refuses what it could answer at another time, or to another client."""


class RefusalLog:
    """Warn of refused requests.

    Args:
        totals: Returns how many requests, or images of a request with several, failed so far, by code.
        clock: Returns a monotonic time, in seconds.
    """

    def __init__(self, totals: Callable[[], Mapping[str, int]], clock: Callable[[], float] = time.monotonic) -> None:
        self._totals = totals
        self._clock = clock
        self._logged = Counter(totals())
        self._logged_at = -math.inf

    def update(self) -> None:
        """Log what was refused since the last line, unless that is less than a minute old."""
        now = self._clock()
        if now - self._logged_at < _INTERVAL_S:
            return
        totals = Counter(self._totals())
        refused = Counter({code: count for code, count in (totals - self._logged).items() if code in REFUSALS})
        if not refused:
            return
        since = "since the start" if math.isinf(self._logged_at) else f"in the last {now - self._logged_at:.0f} s"
        causes = ", ".join(f"{count} {code}" for code, count in refused.most_common())
        logger.warning("Refused %s: %s", since, causes)
        self._logged, self._logged_at = totals, now


def rejected(*boards: MetricsBoard) -> dict[str, int]:
    """Return how many requests, or images of a request with several, failed so far, by code."""
    counts: Counter[str] = Counter()
    for board in boards:
        for (code, _), (count,) in board.totals(metrics.REJECTED).items():
            counts[code] += int(count)
    return dict(counts)
