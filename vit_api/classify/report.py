"""The output of `classify`: a table or JSON lines on standard output, failures and progress on standard error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from vit_api.classify.progress import Progress
from vit_api.client.results import Classification, ClassifyError, Outcome, ScoredLabel

_FLAGS = ("flagged", "thresholds_digest")

_MAX_NAME_WIDTH = 60
_LABEL_WIDTH = 24


@dataclass(frozen=True)
class Output:
    """The output for one image.

    Attributes:
        out: For standard output.
        err: For standard error.
    """

    out: Sequence[str] = ()
    err: Sequence[str] = ()


class JsonLines:
    """Formats each outcome, including a failure, as a JSON object on standard output."""

    def format(self, path: Path, outcome: Outcome) -> Output:
        """Return the file name with the fields of its result or error."""
        if isinstance(outcome, Classification):
            fields = dataclasses.asdict(outcome)
            if not outcome.frames:
                del fields["frames"]
            if outcome.flagged is None:  # there are no thresholds
                fields = _without_flags(fields)
        else:
            fields = {name: getattr(outcome, name) for name in ("code", "status", "request_id")}
            fields = {"error": outcome.message, **fields}
        return Output(out=[json.dumps({"file": str(path), **fields}, allow_nan=False)])


class Table:
    """Formats each result as a table row on standard output, and each failure as a line on standard error.

    Args:
        name_width: The length of the longest file name.
    """

    def __init__(self, name_width: int) -> None:
        self._name_width = max(4, min(name_width, _MAX_NAME_WIDTH))
        self._has_heading = False

    def format(self, path: Path, outcome: Outcome) -> Output:
        """Return the row: the most probable class, then the others. The first row has a heading."""
        name = printable(str(path))
        if isinstance(outcome, ClassifyError):
            what = outcome.message.replace(f" {str(path)!r}", "", 1)  # the line starts with it
            return Output(err=[f"{name}: {printable(what)} ({printable(outcome.code)})"])
        heading = [] if self._has_heading else [self._row("FILE", "LABEL", "CONF", "NEXT")]
        self._has_heading = True
        if not outcome.predictions:  # none has the minimum probability
            return Output(out=[*heading, self._row(name, "-", "-", "")])
        others = ", ".join(f"{_named(p)} {p.confidence:.1%}" for p in outcome.predictions[1:])
        row = self._row(name, _named(outcome.top), f"{outcome.top.confidence:.1%}", others)
        return Output(out=[*heading, row])

    def _row(self, name: str, label: str, confidence: str, others: str) -> str:
        return f"{name:<{self._name_width}}  {label:<{_LABEL_WIDTH}}  {confidence:>6}  {others}".rstrip()


def _named(prediction: ScoredLabel) -> str:
    """Return a label, with a mark if it is flagged."""
    return printable(prediction.label) + ("!" if prediction.flagged else "")


def _without_flags(value: Any) -> Any:
    """Return the fields of a result without what only thresholds give."""
    if isinstance(value, dict):
        return {name: _without_flags(one) for name, one in value.items() if name not in _FLAGS}
    return [_without_flags(one) for one in value] if isinstance(value, list | tuple) else value


class Report:
    """Prints outcomes as they arrive.

    Args:
        out: Stream for results.
        err: Stream for failures and progress.
        formatter: Formats the outcomes.
        progress: The progress bar.

    Attributes:
        failed: The number of images without a result.
    """

    def __init__(self, out: TextIO, err: TextIO, formatter: JsonLines | Table, progress: Progress) -> None:
        self._out = out
        self._err = err
        self._formatter = formatter
        self._progress = progress
        self._done = 0
        self.failed = 0

    def add(self, path: Path, outcome: Outcome) -> None:
        """Print the outcome for an image.

        Raises:
            BrokenPipeError: The reader closed the output.
        """
        self._done += 1
        self.failed += isinstance(outcome, ClassifyError)
        output = self._formatter.format(path, outcome)
        self._progress.clear()
        for line in output.err:
            print(line, file=self._err)
        for line in output.out:
            print(line, file=self._out, flush=True)
        self._progress.draw(self._done, self.failed)

    def close(self) -> None:
        """Remove the progress bar and print the number of failures."""
        self._progress.clear()
        if self.failed:
            print(f"{self.failed} of {self._done} images failed.", file=self._err)


def printable(text: str) -> str:
    """Replace unprintable characters: names and labels come from anywhere, and must not control the terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
