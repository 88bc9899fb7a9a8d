"""Errors in the arguments of `classify`, and types of arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable


class UsageError(Exception):
    """The arguments are invalid; the message says why and what to do."""


def integer_up_to(maximum: int) -> Callable[[str], int]:
    """Return a parser for integers from 1 to `maximum`."""

    def read(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(f"must be an integer from 1 to {maximum}, not {text!r}")
        return int(text)

    return read
