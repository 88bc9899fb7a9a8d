"""docs/http.md names tests that exist."""

from __future__ import annotations

import re

from tests.support.server import ROOT

_PAGE = (ROOT / "docs" / "http.md").read_text()
_TESTS = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}


def test_each_row_names_tests() -> None:
    """In every table that has a column for them."""
    tables = re.findall(r"^\|.*\| test \|\n\|[-|]+\n((?:\|.*\n)+)", _PAGE, re.MULTILINE)
    rows = "".join(tables).splitlines()
    assert len(rows) > 40
    assert [row for row in rows if "`test_" not in row] == []


def test_the_tests_that_it_names_exist() -> None:
    """A reference without a file is to a test of the file named before it in its row, or in its paragraph."""
    missing = []
    for line in _PAGE.splitlines():
        file = ""
        for file_name, test in re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", line):
            file = file_name or file
            candidates = [file] if file else _TESTS
            if not any(f"def {test}(" in _TESTS.get(name, "") for name in candidates):
                missing.append(f"{file}::{test}")
    assert missing == []
