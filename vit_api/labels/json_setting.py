"""Reads settings that are JSON, or the path of a file that has it. Knows nothing of what the values mean."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

MAX_SHOWN = 64
"""Characters of a name in an error."""

_MAX_FILE_BYTES = 2**24


def read_json(text: str, openings: tuple[str, ...], example: str, error: type[ValueError]) -> Any:
    """Return the value of a setting.

    Args:
        text: JSON, or the path of a file that has it.
        openings: The first characters of JSON; a text that begins with another one is a path.
        example: Valid JSON, for errors.
        error: What is raised.

    Raises:
        ValueError: Of the type `error`: it can't be read, is malformed, or has a name twice in an object.
    """
    source = text.strip()
    if not source.startswith(openings):
        source = _read_file(source, example, error)
    # In a list, each object has the same names.
    unique = functools.partial(_unique, error, " in one object" if "[" in openings else "")
    try:
        return json.loads(source, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as malformed:
        raise error(f"The JSON is malformed: {malformed}") from None


def _read_file(path: str, example: str, error: type[ValueError]) -> str:
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig") as file:
            return file.read(_MAX_FILE_BYTES)
    except (OSError, RuntimeError, ValueError) as unreadable:  # a name with a NUL, a file that is not UTF-8
        reason = getattr(unreadable, "strerror", None) or unreadable
        raise error(f"Input should be JSON such as {example}, or the path of a file with it ({reason})") from None


def _unique(error: type[ValueError], where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; of a repeated name, one value would be ignored in silence."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise error(f"The JSON has {name[:MAX_SHOWN]!r} more than once{where}")
        found[name] = value
    return found
