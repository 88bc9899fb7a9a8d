"""docs/http.md names tests that exist."""

from __future__ import annotations

import re

from tests.support.server import ROOT

_PAGE = (ROOT / "docs" / "http.md").read_text()
_TESTS = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}


def test_each_feature_names_tests() -> None:
    """The first table has a test in each row."""
    rows = re.findall(r"^\| .+ \|$", _PAGE.partition("## Limits")[0], re.MULTILINE)[1:]
    assert len(rows) >= 9
    assert [row for row in rows if "`test_" not in row] == []


def test_the_named_tests_exist() -> None:
    """A reference without a file is to a test of the file named before it, or of any file."""
    named = re.findall(r"`(?:(test_\w+\.py)(?:::)?)?(test_\w+)?`", _PAGE)
    file, missing = "", []
    for file_name, test in named:
        file = file_name or file
        if file not in _TESTS or (test and f"def {test}(" not in _TESTS[file]):
            missing.append(f"{file}::{test}")
    assert len(named) > 15
    assert missing == []
