"""Reads and writes results. Rejects a result without a commit, since what it measured could not be reproduced.

A result that is written elsewhere may come from any tree.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.harness import machine

FOLDER = machine.ROOT / "benchmarks" / "results"
"""The folder of committed results, one file per benchmark, and their plots."""


def file_of(name: str) -> Path:
    """Return the file that a benchmark's result is committed in."""
    return FOLDER / f"{name}.json"


def read(name: str) -> dict[str, Any]:
    """Return a benchmark's committed result."""
    result: dict[str, Any] = json.loads(file_of(name).read_text())
    return result


def write(file: Path, figures: dict[str, Any], described: dict[str, Any] | None = None) -> None:
    """Write a result with the description of the machine, atomically.

    Args:
        file: The file to write.
        figures: The measured figures.
        described: The machine as it was when the measurement began (default: as it is now).
    """
    content = {"machine": described or machine.describe(), **figures}
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(file)


def refusal(file: Path) -> str | None:
    """Return why a result must not be written to a file, or None if it may be."""
    if not file.resolve().is_relative_to(FOLDER):
        return None
    changed = machine.uncommitted()
    if changed is None:
        return f"The commit is unknown, as git fails in {machine.ROOT}: write the result elsewhere with --out."
    if changed:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return (
            f"The tree has uncommitted changes ({changed[0]}{others}): commit them first, or write the result "
            "elsewhere with --out."
        )
    return None
