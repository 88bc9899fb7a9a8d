"""Categories of moderation, by OpenAI's names, and which labels of the model belong to each. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vit_api.labels.json_setting import MAX_SHOWN
from vit_api.labels.label_map import LabelMapError, check_labels, hint_of, read_label_map

CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""Those of OpenAI's moderation API: https://developers.openai.com/api/docs/guides/moderation."""

_EXAMPLE = '{"nsfw": "sexual", "gore": ["violence", "violence/graphic"]}'


@dataclass(frozen=True)
class Categories:
    """The labels of each category.

    Attributes:
        labels: By the name of the category; only those that have any.
    """

    labels: Mapping[str, tuple[str, ...]]

    @classmethod
    def load(cls, text: str, labels: Collection[str] | None = None) -> Categories:
        """Read which category or categories each label belongs to.

        Args:
            text: JSON, such as `{"nsfw": "sexual"}`, or the path of a file that has it.
            labels: Those of the model; None does not check that it has the named ones.

        Raises:
            LabelMapError: They can't be read, there is no such category, or the model lacks a label.
        """
        found: dict[str, tuple[str, ...]] = {}
        by_label = {label: _names_of(label, value) for label, value in read_label_map(text, _EXAMPLE).items()}
        if labels is not None:
            check_labels(by_label, labels)
        for label, names in by_label.items():
            for name in names:
                found[name] = (*found.get(name, ()), label)
        return cls(found)

    @classmethod
    def of_labels(cls, labels: Collection[str]) -> Categories:
        """Return categories that are the labels themselves."""
        return cls({label: (label,) for label in labels})


def _names_of(label: str, value: object) -> list[str]:
    names: list[Any] = value if isinstance(value, list) else [value]
    for name in names:
        if name not in CATEGORIES:
            shown = repr(name)[:MAX_SHOWN]
            hint = hint_of(name, CATEGORIES) if isinstance(name, str) else ""
            raise LabelMapError(f"The label {label[:MAX_SHOWN]!r} has no category of OpenAI's, but {shown}.{hint}")
    return names
