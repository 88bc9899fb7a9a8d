"""Write the tables of settings, in README.md and docs/settings.md: `python -m scripts.settings_docs`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic.fields import FieldInfo

from vit_api.setting_texts import GROUPS, allowed_of, choices_of, default_of
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


def table(names: Sequence[str]) -> str:
    """Return the table of these settings in Markdown."""
    rows = [_row(name, Settings.model_fields[name]) for name in names]
    return "\n".join(["| setting | default | allowed | meaning |", "|---|---|---|---|", *rows]) + "\n"


def grouped_tables() -> str:
    """Return the tables of all settings, each with its heading."""
    return "\n".join(f"## {title}\n\n{table(names)}" for title, names in GROUPS.items())


def with_tables(text: str, tables: str) -> str:
    """Return a page's text with the tables between its markers."""
    start, end = text.index(_START) + len(_START), text.index(_END, text.index(_START))
    return text[:start] + tables + text[end:]


def updated() -> dict[Path, str]:
    """Return the text that each page should have."""
    tables = {README: table(COMMON), PAGE: grouped_tables()}
    return {path: with_tables(path.read_text(), text) for path, text in tables.items()}


def _row(name: str, field: FieldInfo) -> str:
    meaning = re.sub(r"([<*])", r"\\\1", field.description or "")  # Markdown would interpret them
    return f"| `{ENV_PREFIX}{name.upper()}` | {_default(name, field)} | {_allowed(name)} | {meaning} |"


def _default(name: str, field: FieldInfo) -> str:
    is_value = isinstance(field.default, str)  # which can be pasted
    return f"`{field.default}`" if is_value else default_of(name)


def _allowed(name: str) -> str:
    """Return the choices or the range."""
    return ", ".join(f"`{choice}`" for choice in choices_of(name)) or allowed_of(name)


if __name__ == "__main__":
    for path, text in updated().items():
        path.write_text(text)
