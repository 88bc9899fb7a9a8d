"""The section "Follow one image" of docs/architecture.md names functions that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.server import ROOT

_PAGE = (ROOT / "docs" / "architecture.md").read_text()
_SECTION = _PAGE.partition("## Follow one image")[2].partition("\n## ")[0]
_STEPS = re.findall(r"^\d+\. (.+(?:\n {3,}.+)*)", _SECTION, re.MULTILINE)
_FUNCTION = re.compile(r"`(vit_api/[\w/]+\.py):([\w.]+)`")


def _functions(path: str) -> set[str]:
    """Return a file's functions, methods as `Class.method`."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + member.name for member in members if isinstance(member, kinds)}
    return found


def test_there_are_at_most_ten_steps() -> None:
    """The steps name at most ten files."""
    assert 5 <= len(_STEPS) <= 10
    assert len({path for step in _STEPS for path, _ in _FUNCTION.findall(step)}) <= 10


@pytest.mark.parametrize("step", [pytest.param(step, id=step[:60]) for step in _STEPS])
def test_a_step_names_functions_that_exist(step: str) -> None:
    """Each step begins with an existing function, so that the page follows moves and renames."""
    assert _FUNCTION.match(step), step
    for path, name in _FUNCTION.findall(step):
        assert (ROOT / path).is_file(), path
        assert name in _functions(path), f"{path} has no {name}"


def test_the_readme_has_the_same_steps() -> None:
    """It is the shortest way into the code, so both pages have it."""
    steps = _SECTION[_SECTION.index("1. ") :].strip()
    assert steps in (ROOT / "README.md").read_text()
