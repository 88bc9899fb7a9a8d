"""Write the tables of settings, in README.md and docs/settings.md: `python -m scripts.settings_docs`."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from vit_api.settings import ENV_PREFIX, Settings

_ROOT = Path(__file__).resolve().parent.parent
README = _ROOT / "README.md"
PAGE = _ROOT / "docs" / "settings.md"

COMMON = (
    "model",
    "host",
    "port",
    "device",
    "max_batch_size",
    "max_wait_ms",
    "queue_size",
    "cache_size",
    "redis_url",
    "api_keys",
)
"""The settings that most deployments change: the README has these, docs/settings.md has all."""

_START, _END = "<!-- settings -->\n", "<!-- end -->"
_COMPUTED = {"api_servers": "one per core", "decode_threads": "cores per process"}


def table(names: Sequence[str]) -> str:
    """Return the table of these settings in Markdown."""
    rows = [_row(name, Settings.model_fields[name]) for name in names]
    return "\n".join(["| setting | default | allowed | meaning |", "|---|---|---|---|", *rows]) + "\n"


def with_table(text: str, names: Sequence[str]) -> str:
    """Return a page's text with the table between its markers."""
    start, end = text.index(_START) + len(_START), text.index(_END, text.index(_START))
    return text[:start] + table(names) + text[end:]


def updated() -> dict[Path, str]:
    """Return the text that each page should have."""
    tables = {README: COMMON, PAGE: tuple(Settings.model_fields)}
    return {path: with_table(path.read_text(), names) for path, names in tables.items()}


def _row(name: str, field: FieldInfo) -> str:
    meaning = re.sub(r"([<*])", r"\\\1", field.description or "")  # Markdown would interpret them
    return f"| `{ENV_PREFIX}{name.upper()}` | {_default_of(name, field)} | {_allowed(field)} | {meaning} |"


def _default_of(name: str, field: FieldInfo) -> str:
    if name in _COMPUTED:
        return _COMPUTED[name]
    default = field.default
    if default is None:
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{default}`" if isinstance(default, str) else _number(default).replace(",", "")  # so that it can be pasted


def _allowed(field: FieldInfo) -> str:
    """Return the choices or the range."""
    if choices := list(_choices(field.annotation)):
        return ", ".join(f"`{choice}`" for choice in choices)
    limits = {name: value for part in field.metadata for name, value in _limits(part)}
    low, high = limits.get("ge", limits.get("gt")), limits.get("le")
    if low is None or high is None:
        return ""
    return ("above " if "gt" in limits else "") + f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{int(value) if value == int(value) else value:,}"


def _choices(annotation: Any) -> Iterable[str]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def _limits(part: Any) -> Iterable[tuple[str, float]]:
    return [(name, getattr(part, name)) for name in ("ge", "gt", "le") if hasattr(part, name)]


if __name__ == "__main__":
    for path, text in updated().items():
        path.write_text(text)
