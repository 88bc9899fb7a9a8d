"""Writes Markdown tables. Knows nothing of what they show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Row = Sequence[object]


def markdown(head: Row, rows: Iterable[Row]) -> str:
    """Return a table with a heading and one line per row."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def connections(count: int) -> str:
    """Return a number of connections in words."""
    return f"{count} connection{'' if count == 1 else 's'}"
