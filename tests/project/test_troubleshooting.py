"""docs/troubleshooting.md has a row for every error code and for every error that stops the start."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import ROOT
from vit_api.errors import error_classes

_PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
_STARTS = _PAGE.partition("## The server does not start")[2].partition("\n## ")[0]
_CODES = _PAGE.partition("## Error codes")[2].partition("\n## ")[0]
_PLACES = [
    ROOT / "vit_api" / name
    for name in (
        "app.py",
        "startup.py",
        "command_line.py",
        "shared/server.py",
        "environment/system.py",
        "environment/devices.py",
    )
]
_FOLDERS = [ROOT / "vit_api" / name for name in ("checkpoints", "labels")]
_MODULES = [*_PLACES, *sorted(module for folder in _FOLDERS for module in folder.glob("*.py"))]
_REASONS = ("NotPlain",)
"""Errors whose messages are only shown as reasons within another one, that timm is needed."""
_FEW_CHARACTERS = 12


def _texts(node: ast.AST) -> Iterator[str]:
    """Yield the constant parts of the messages in an expression."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that make what is raised, and those of `exit`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            if getattr(node.exc.func, "id", "") not in _REASONS:
                yield node.exc
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "exit":
            yield node


def _errors(module: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the constant parts of each error that a module raises or exits with."""
    tree = ast.parse(module.read_bytes())
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in _calls(tree):
        arguments = [constants.get(x.id, x) if isinstance(x, ast.Name) else x for x in node.args]
        parts = [text for argument in arguments for text in _texts(argument) if len(text.strip()) >= _FEW_CHARACTERS]
        if parts:
            yield node.lineno, parts


_STOPS = [
    pytest.param(parts, id=f"{module.relative_to(ROOT / 'vit_api')}:{line}")
    for module in _MODULES
    for line, parts in _errors(module)
]


def _plain(text: str) -> str:
    return " ".join(text.replace("\\", "").split())


def test_the_messages_are_found() -> None:
    """There are dozens, so that the test below checks something."""
    assert len(_STOPS) > 60


@pytest.mark.parametrize("parts", _STOPS)
def test_each_error_of_the_start_has_a_row(parts: list[str]) -> None:
    """The page quotes a part of its message, so that a search for it finds the row."""
    quoted = [_plain(text) for text in re.findall(r"`([^`]+)`", _STARTS)]
    message = _plain(" ".join(parts))
    assert any(quote in message for quote in quoted if len(quote) >= _FEW_CHARACTERS), message


@pytest.mark.parametrize("code", sorted({kind.code for kind in error_classes()}))
def test_each_error_code_has_a_row(code: str) -> None:
    """With its status, and what to do."""
    statuses = {str(kind.status) for kind in error_classes() if kind.code == code}
    rows = re.findall(rf"^\| (\d+) `{code}` \| .{{10,}} \| .{{10,}} \|$", _CODES, re.MULTILINE)
    assert set(rows) == statuses


def test_there_is_no_row_for_a_code_that_does_not_exist() -> None:
    """Rows of removed codes are removed."""
    named = set(re.findall(r"^\| \d+ `(\w+)` \|", _CODES, re.MULTILINE))
    assert named == {kind.code for kind in error_classes()}
