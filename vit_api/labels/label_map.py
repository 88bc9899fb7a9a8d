"""Reads settings that are JSON by label: an object, or a file that has it. Knows nothing of what the values mean."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from vit_api.labels.json_setting import MAX_SHOWN, read_json


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
    document = read_json(text, ("{",), example, LabelMapError)
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
