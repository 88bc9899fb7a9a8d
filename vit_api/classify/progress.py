"""The progress of many images: a bar in a terminal, or lines in a log. Knows nothing of their outcomes."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable
from typing import TextIO

_BAR_WIDTH = 30
_REDRAW_S = 0.1
_CLEAR_LINE = "\r\x1b[K"


class Progress:
    """A progress bar in a terminal's last line, with the rate since the first call of `draw` and the time left.

    Args:
        stream: Where to draw.
        total: The number of images.
        clock: Returns the time in seconds.
        log_every_s: If the stream is not a terminal, print a line this often, in seconds; None: draw nothing there.
    """

    def __init__(
        self,
        stream: TextIO,
        total: int,
        clock: Callable[[], float] = time.monotonic,
        log_every_s: float | None = None,
    ) -> None:
        self._stream = stream
        self._total = total
        self._clock = clock
        self._is_terminal = stream.isatty()
        self._interval_s = _REDRAW_S if self._is_terminal else log_every_s
        self._is_drawn = False
        self._drawn_at = -math.inf
        self._first: tuple[float, int] | None = None

    def draw(self, done: int, failed: int) -> None:
        """Draw the bar, at most ten times a second."""
        now = self._clock()
        if self._first is None:
            self._first = now, done
        if self._interval_s is None or now - self._drawn_at < self._interval_s:
            return
        self._drawn_at = now
        text = f"{done}/{self._total}{f', {failed} failed' if failed else ''}{self._pace(now, done)}"
        if not self._is_terminal:
            self._write(text + "\n")
            return
        self._is_drawn = True
        filled = _BAR_WIDTH * done // self._total if self._total else 0
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        self._write(f"{_CLEAR_LINE}[{bar}] {text}")

    def _pace(self, now: float, done: int) -> str:
        """Return the rate and the time left; nothing until there is a rate."""
        started, done_before = self._first or (now, done)
        if now <= started or done <= done_before:
            return ""
        rate = (done - done_before) / (now - started)
        left = datetime.timedelta(seconds=round((self._total - done) / rate))
        return f", {rate:,.1f} images/s, {left} left"

    def clear(self) -> None:
        """Remove the bar, so that other output can be written in its place."""
        if self._is_drawn:
            self._is_drawn = False
            self._write(_CLEAR_LINE)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
