"""Results: their contents, when they are rejected, and the pages that quote them."""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, quotes, report
from benchmarks.harness import machine, results

_NOT_YET_MEASURED: list[str] = []
"""Benchmarks without a result. Remove a name once it is measured."""


def _committed() -> Iterator[Any]:
    """Yield each committed result."""
    for file in sorted(results.FOLDER.glob("*.json")):
        yield pytest.param(file, id=file.stem)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in report.PAGES])
def test_the_tables_are_up_to_date(page: Path) -> None:
    """After a new result, run `python -m benchmarks.report`, which updates the pages."""
    content = page.read_text()
    assert report.render(content) == content


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in quotes.PAGES])
def test_pages_quote_the_results(page: Path) -> None:
    """Each quoted figure equals its result; `python -m benchmarks.report` updates them."""
    content = page.read_text()
    assert quotes.render(content) == content
    assert quotes._QUOTE.search(content)


def test_an_outdated_quote_is_updated() -> None:
    """The rest of the text is unchanged; an unknown quote raises."""
    soak = results.read("soak")
    line = "We sent <!-- soak.requests -->7<!-- end --> requests to <!-- soak.workers -->0<!-- end --> workers."
    shown = f"We sent <!-- soak.requests -->{soak['requests']:,}<!-- end --> requests to "
    assert quotes.render(line).startswith(shown)
    with pytest.raises(KeyError):
        quotes.render("<!-- soak.unknown -->7<!-- end -->")


@pytest.mark.parametrize("name", quotes._FIGURES)
def test_every_figure_is_quoted(name: str) -> None:
    """Each figure is on some page once there is a result."""
    if name in _NOT_YET_MEASURED:
        pytest.skip("not yet measured")
    content = "".join(page.read_text() for page in quotes.PAGES)
    assert [key for key in quotes._FIGURES[name] if f"<!-- {name}.{key} -->" not in content] == []


def test_every_table_is_on_the_page() -> None:
    """One of the pages has a place for each benchmark's table."""
    page = "".join(page.read_text() for page in report.PAGES)
    assert [name for name in report.TABLES if f"<!-- {name} -->\n" not in page] == []


def test_every_table_has_its_result() -> None:
    """Only benchmarks in `_NOT_YET_MEASURED` have none, and the page says so."""
    assert [name for name in report.TABLES if not results.file_of(name).exists()] == _NOT_YET_MEASURED
    pages = "".join(report.render(page.read_text()) for page in report.PAGES)
    for name in _NOT_YET_MEASURED:
        assert f"<!-- {name} -->\nNot measured yet: `python -m benchmarks.{name}`.\n<!-- end -->" in pages


@pytest.mark.parametrize("file", list(_committed()))
def test_a_result_names_its_commit(file: Path) -> None:
    """It was measured on exactly that commit."""
    described = json.loads(file.read_text())["machine"]
    assert described["commit"]
    assert not described["has_uncommitted_changes"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a repository with one commit."""
    for name in ("benchmarks/results/soak.json", "benchmarks/README.md", "vit_api/app.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("init", "--quiet"), ("add", "."), (*author, "commit", "--quiet", "--message", "first")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "uncommitted"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param(["vit_api/app.py"], ["vit_api/app.py"], id="changed file"),
        pytest.param(["vit_api/new/one.py"], ["vit_api/new/one.py"], id="new file in a new folder"),
        pytest.param(["benchmarks/results/soak.json", "benchmarks/README.md"], [], id="another benchmark's result"),
        pytest.param(["README.md", "docs/cache.md"], [], id="pages that quote results"),
    ],
)
def test_uncommitted_changes(tree: Path, changed: list[str], uncommitted: list[str]) -> None:
    """All files count but those that the benchmarks write."""
    for name in changed:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("changed")
    assert machine.uncommitted(tree) == uncommitted


def test_outside_a_repository_changes_are_unknown(tmp_path: Path) -> None:
    """The result is None, not an empty list."""
    assert machine.uncommitted(tmp_path) is None


@pytest.mark.parametrize("name", report.TABLES)
def test_a_changed_tree_is_rejected_before_measuring(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every benchmark with a committed result exits with a message that says what to do."""
    benchmark = importlib.import_module(f"benchmarks.{name}")
    for measures in ("run", "measure", "profile", "camera"):
        monkeypatch.setattr(benchmark, measures, _fail, raising=False)
    monkeypatch.setattr(machine, "uncommitted", lambda: ["vit_api/app.py", "server.py"])
    with pytest.raises(SystemExit) as caught:
        benchmark.main([])
    assert caught.value.code == (
        "The tree has uncommitted changes (vit_api/app.py and 1 more): commit them first, or write the result "
        "elsewhere with --out."
    )


def test_the_gpu_benchmark_checks_the_tree_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may measure a changed tree, but not write its result to the folder of committed results."""
    monkeypatch.setattr(machine, "uncommitted", lambda: ["server.py"])
    with pytest.raises(SystemExit, match="uncommitted changes"):
        gpu.main(["--out", str(results.file_of("gpu"))])


def _fail(*_: Any, **__: Any) -> None:
    raise AssertionError("measured")


def test_without_git_a_result_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not name its commit."""
    monkeypatch.setattr(machine, "uncommitted", lambda: None)
    assert "The commit is unknown" in str(results.refusal(results.file_of("soak")))


def test_a_result_written_elsewhere_may_be_of_a_changed_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It records that the tree had changes."""
    monkeypatch.setattr(machine, "uncommitted", lambda: ["vit_api/app.py"])
    assert results.refusal(tmp_path / "soak.json") is None
    results.write(tmp_path / "soak.json", {"lost": []})
    written = json.loads((tmp_path / "soak.json").read_text())
    assert written["machine"]["has_uncommitted_changes"]
    assert written["lost"] == []


def test_a_clean_tree_may_write_any_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of a clean tree may be written to the folder of committed results."""
    monkeypatch.setattr(machine, "uncommitted", list)
    assert results.refusal(results.file_of("soak")) is None
