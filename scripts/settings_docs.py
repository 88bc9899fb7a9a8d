"""Write the README's table of settings from their definitions: `python -m scripts.settings_docs`."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from vit_api.settings import ENV_PREFIX, Settings

README = Path(__file__).resolve().parent.parent / "README.md"

_START, _END = "<!-- settings -->\n", "<!-- end -->"
_COMPUTED = {"api_servers": "one a core"}


def table() -> str:
    """Return the table in Markdown."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return "\n".join(["| setting | default | allowed | |", "|---|---|---|---|", *rows]) + "\n"


def with_table(page: str) -> str:
    """Return a page with the table between its marks."""
    start, end = page.index(_START) + len(_START), page.index(_END, page.index(_START))
    return page[:start] + table() + page[end:]


def _row(name: str, field: FieldInfo) -> str:
    meaning = re.sub(r"([<*])", r"\\\1", field.description or "")  # else Markdown takes them for its own
    return f"| `{ENV_PREFIX}{name.upper()}` | {_default_of(name, field)} | {_allowed(field)} | {meaning} |"


def _default_of(name: str, field: FieldInfo) -> str:
    if name in _COMPUTED:
        return _COMPUTED[name]
    default = field.default
    if default is None:
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{default}`" if isinstance(default, str) else _number(default).replace(",", "")  # to be copied


def _allowed(field: FieldInfo) -> str:
    """Return the choices or the limits."""
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
    README.write_text(with_table(README.read_text()))
