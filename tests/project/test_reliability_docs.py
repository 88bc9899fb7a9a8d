"""The tests that docs/reliability.md names exist."""

from __future__ import annotations

import re

from tests.support.server import ROOT

_PAGE = (ROOT / "docs" / "reliability.md").read_text()
_TESTS = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}


def test_each_row_names_tests() -> None:
    """Each fault in the table has a test."""
    rows = re.findall(r"^\| .+ \|$", _PAGE.partition("## What is not covered")[0], re.MULTILINE)[1:]
    assert len(rows) > 20
    assert [row for row in rows if "`test_" not in row] == []


def test_named_tests_exist() -> None:
    """A test named without a file is in the file named before it."""
    named = re.findall(r"`(?:(test_\w+\.py)(?:::)?)?(test_\w+)?`", _PAGE)
    file = ""
    missing = []
    for file_name, test in named:
        file = file_name or file
        if file not in _TESTS or (test and f"def {test}(" not in _TESTS[file]):
            missing.append(f"{file}::{test}")
    assert len(named) > 25
    assert missing == []
