"""What engines yield."""

from __future__ import annotations

from dataclasses import dataclass


class RunFailed(Exception):
    """An engine can't go on; the message says why. What is finished stays so."""


@dataclass(frozen=True)
class PartDone:
    """A part whose results are written.

    Attributes:
        part: Its number.
        files: The number of its files.
        failed: How many of them have an error.
    """

    part: int
    files: int
    failed: int
