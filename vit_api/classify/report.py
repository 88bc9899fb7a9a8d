"""What `classify` shows: a table or JSON lines on standard output, failures and progress on standard error."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from vit_api.client.results import Classification, ClassifyError, Outcome

_LONGEST_NAME = 60
_LABEL_WIDTH = 24
_BAR_WIDTH = 30
_REDRAW_S = 0.1
_CLEAR_LINE = "\r\x1b[K"


class Progress:
    """A progress bar in a terminal's last line; elsewhere nothing.

    Args:
        stream: Where to draw.
        total: How many images there are.
        clock: The time in seconds.
    """

    def __init__(self, stream: TextIO, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._total = total
        self._clock = clock
        self._is_on = stream.isatty()
        self._is_drawn = False
        self._drawn_at = -math.inf

    def draw(self, done: int, failed: int) -> None:
        """Draw the bar, unless it was drawn a moment ago."""
        now = self._clock()
        if not self._is_on or now - self._drawn_at < _REDRAW_S:
            return
        self._drawn_at = now
        self._is_drawn = True
        filled = _BAR_WIDTH * done // self._total if self._total else 0
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        failures = f", {failed} failed" if failed else ""
        self._write(f"{_CLEAR_LINE}[{bar}] {done}/{self._total}{failures}")

    def clear(self) -> None:
        """Take the bar away, so that something else can be written there."""
        if self._is_drawn:
            self._is_drawn = False
            self._write(_CLEAR_LINE)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


@dataclass(frozen=True)
class Shown:
    """The lines that tell of one image.

    Attributes:
        out: For standard output.
        err: For standard error.
    """

    out: Sequence[str] = ()
    err: Sequence[str] = ()


class JsonLines:
    """A JSON object for each image, also for one that failed, on standard output."""

    def show(self, path: Path, outcome: Outcome) -> Shown:
        """Return the file's name with the fields of its result or error."""
        if isinstance(outcome, Classification):
            fields = dataclasses.asdict(outcome)
        else:
            fields = {name: getattr(outcome, name) for name in ("code", "status", "request_id")}
            fields = {"error": outcome.message, **fields}
        return Shown(out=[json.dumps({"file": str(path), **fields}, allow_nan=False)])


class Table:
    """A row for each image on standard output, under a heading; a line for each failure on standard error.

    Args:
        name_width: The longest file name's length.
    """

    def __init__(self, name_width: int) -> None:
        self._name_width = max(4, min(name_width, _LONGEST_NAME))
        self._has_heading = False

    def show(self, path: Path, outcome: Outcome) -> Shown:
        """Return the row: the most probable class, then the others."""
        name = printable(str(path))
        if isinstance(outcome, ClassifyError):
            what = outcome.message.removeprefix(f"{path} ")  # once is enough
            return Shown(err=[f"{name}: {printable(what)} ({printable(outcome.code)})"])
        heading = [] if self._has_heading else [self._row("FILE", "LABEL", "CONF", "NEXT")]
        self._has_heading = True
        others = ", ".join(f"{printable(p.label)} {p.confidence:.1%}" for p in outcome.predictions[1:])
        row = self._row(name, printable(outcome.top.label), f"{outcome.top.confidence:.1%}", others)
        return Shown(out=[*heading, row])

    def _row(self, name: str, label: str, confidence: str, others: str) -> str:
        return f"{name:<{self._name_width}}  {label:<{_LABEL_WIDTH}}  {confidence:>6}  {others}".rstrip()


class Report:
    """Shows outcomes as they come.

    Args:
        out: For results.
        err: For failures and progress.
        lines: How to word them.
        progress: The progress bar.

    Attributes:
        failed: How many images got no result.
    """

    def __init__(self, out: TextIO, err: TextIO, lines: JsonLines | Table, progress: Progress) -> None:
        self._out = out
        self._err = err
        self._lines = lines
        self._progress = progress
        self._done = 0
        self.failed = 0

    def add(self, path: Path, outcome: Outcome) -> None:
        """Show what became of an image.

        Raises:
            BrokenPipeError: Nobody reads the results any more.
        """
        self._done += 1
        self.failed += isinstance(outcome, ClassifyError)
        shown = self._lines.show(path, outcome)
        self._progress.clear()
        for line in shown.err:
            print(line, file=self._err)
        for line in shown.out:
            print(line, file=self._out, flush=True)
        self._progress.draw(self._done, self.failed)

    def close(self) -> None:
        """Take the progress bar away and say how many failed."""
        self._progress.clear()
        if self.failed:
            print(f"{self.failed} of {self._done} images failed", file=self._err)


def printable(text: str) -> str:
    """Replace what could move a terminal's cursor or change its colours: names and labels come from anywhere."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
