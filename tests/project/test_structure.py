"""The structure of the repository: tests mirror the package, and each class name is unique."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.server import ROOT


def _imported_names(module: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports."""
    package = module.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(module.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_no_module_imports_a_test_module() -> None:
    """Shared code of the tests belongs in tests/support/."""
    offenders = [
        (str(module.relative_to(ROOT)), name)
        for module in (ROOT / "tests").rglob("*.py")
        for name in _imported_names(module)
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
    ]
    assert not offenders


def test_unit_tests_mirror_the_package() -> None:
    """Each folder `tests/unit/<name>/` has a package `vit_api/<name>/`."""
    unit = ROOT / "tests" / "unit"
    packages = {module.parent.relative_to(unit) for module in unit.rglob("test_*.py")}
    assert len(packages) > 1
    assert not [package for package in packages if not (ROOT / "vit_api" / package / "__init__.py").is_file()]


def test_class_names_are_unique() -> None:
    """No two modules of the package define classes of the same name."""
    modules_by_class: dict[str, list[str]] = {}
    for module in (ROOT / "vit_api").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_bytes())):
            if isinstance(node, ast.ClassDef):
                modules_by_class.setdefault(node.name, []).append(str(module.relative_to(ROOT)))
    assert {name: modules for name, modules in modules_by_class.items() if len(modules) > 1} == {}
