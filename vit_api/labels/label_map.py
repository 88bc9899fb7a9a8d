"""Reads settings that are JSON by label: an object, or a file that has it. Knows nothing of what the values mean."""

from __future__ import annotations

import json
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

MAX_SHOWN = 64
"""Characters of a name in an error."""

_MAX_FILE_BYTES = 2**24


class LabelMapError(ValueError):
    """A setting by label can't be read, or does not fit the model."""


def read_label_map(text: str, example: str) -> dict[str, Any]:
    """Return the values by label.

    Args:
        text: JSON, or the path of a file that has it.
        example: Valid JSON, for errors.

    Raises:
        LabelMapError: It can't be read, has a name twice, or is no object.
    """
    source = text.strip()
    if not source.startswith("{"):
        source = _read_file(source, example)
    try:
        document = json.loads(source, object_pairs_hook=_unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise LabelMapError(f"The JSON is malformed: {error}") from None
    if not isinstance(document, dict) or not document:
        raise LabelMapError(f"Input should be an object of JSON such as {example}")
    return document


def check_labels(named: Collection[str], labels: Collection[str], other: str | None = None) -> None:
    """Refuse labels that the model does not have: with a slip, they would never apply.

    Args:
        named: The labels of a setting.
        labels: Those of the model.
        other: A name that stands for other labels.

    Raises:
        LabelMapError: The model lacks one.
    """
    known = set(labels)
    for name in named:
        if name not in known and name != other:
            raise LabelMapError(f"The model has no label {name[:MAX_SHOWN]!r}.{hint_of(name, known)}")


def hint_of(name: str, known: Collection[str]) -> str:
    """Return a sentence with the name that may have been meant, or nothing."""
    near = get_close_matches(name, known, 1)
    return f" Did you mean {near[0][:MAX_SHOWN]!r}?" if near else ""


def _read_file(path: str, example: str) -> str:
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig") as file:
            return file.read(_MAX_FILE_BYTES)
    except (OSError, RuntimeError, ValueError) as error:  # a name with a NUL, a file that is not UTF-8
        reason = getattr(error, "strerror", None) or error
        raise LabelMapError(
            f"Input should be JSON such as {example}, or the path of a file with it ({reason})"
        ) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; of a repeated name, one value would be ignored in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise LabelMapError(f"The JSON has {repeated[:MAX_SHOWN]!r} more than once")
    return found
