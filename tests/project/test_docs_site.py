"""The documentation site: `make docs` builds it, and fails on broken links and anchors."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts import architecture_docs
from tests.support.server import ROOT

_MKDOCS = ROOT / ".venv-docs" / "bin" / "mkdocs"
_NEEDS_MKDOCS = pytest.mark.skipif(not _MKDOCS.exists(), reason="needs MkDocs: run `make docs`")
_COPIED = ("docs", "scripts", "benchmarks", "deploy", "tests", "examples")
_EMBEDDED = re.compile(r'<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="(https?://[^"]+)"')


def _build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [str(_MKDOCS), "build", "--strict", "--config-file", str(root / "mkdocs.yml"), "--site-dir", str(site)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder like a checkout whose pages a test may change."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in _COPIED:
        if name == "docs":
            shutil.copytree(ROOT / name, folder / name)
        else:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in [*ROOT.glob("*.md"), ROOT / "mkdocs.yml"]:
        shutil.copy(file, folder)
    return folder


@_NEEDS_MKDOCS
def test_the_site_is_built_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    """Every page is in it, and in the index of the search."""
    site = tmp_path / "site"
    result = _build(ROOT, site)
    assert result.returncode == 0, result.stderr
    pages = [page.stem for page in (ROOT / "docs").glob("*.md")]
    assert [page for page in pages if not (site / f"{page}.html").is_file()] == []
    index = (site / "search" / "search_index.json").read_text()
    assert [page for page in pages if f'"{page}.html' not in index] == []
    for page in site.glob("*.html"):
        embedded = [url for url in _EMBEDDED.findall(page.read_text()) if 'rel="canonical' not in url]
        assert embedded == [], page


_BROKEN = {
    "[x](nowhere.md)": "nowhere.md",
    "[x](api.md#nowhere)": "api.md#nowhere",
    "[x](../benchmarks/README.md#nowhere)": "benchmarks.md#nowhere",
    "[x](../deploy/nowhere.conf)": "nowhere.conf",
    "![x](nowhere.png)": "nowhere.png",
}
"""Links to a page, an anchor, an anchor of a page elsewhere, a file elsewhere and a picture; what the build says."""


@_NEEDS_MKDOCS
def test_every_broken_link_and_hidden_page_is_found(checkout: Path, tmp_path: Path) -> None:
    """Wherever a link leads; a page that is not in the navigation, no reader would find."""
    for number, link in enumerate(_BROKEN):
        (checkout / "docs" / f"hidden-{number}.md").write_text(f"# Hidden\n\n{link}\n")
    result = _build(checkout, tmp_path / "site")
    assert result.returncode != 0
    for number, (link, problem) in enumerate(_BROKEN.items()):
        warnings = [line for line in result.stderr.splitlines() if f"hidden-{number}.md" in line]
        assert [line for line in warnings if problem in line], link
        assert [line for line in warnings if line.endswith(f"- hidden-{number}.md")], "not in the navigation"


@_NEEDS_MKDOCS
def test_one_broken_link_fails_the_build(checkout: Path, tmp_path: Path) -> None:
    """Also where nothing else is wrong."""
    with (checkout / "docs" / "faq.md").open("a") as page:
        page.write("\n[x](api.md#nowhere)\n")
    assert _build(checkout, tmp_path / "site").returncode != 0


def test_every_page_is_in_the_navigation() -> None:
    """Also where MkDocs is not installed."""
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= named


def test_the_state_machine_is_that_of_the_code() -> None:
    """After a change of it, run `python -m scripts.architecture_docs`."""
    assert {path: path.read_text() for path in architecture_docs.updated()} == architecture_docs.updated()


def test_the_packages_are_pinned() -> None:
    """Each exactly, so that a build is the same everywhere."""
    lines = [line for line in (ROOT / "requirements-docs.txt").read_text().splitlines() if not line.startswith("#")]
    assert "mkdocs-material" in {line.partition("==")[0] for line in lines}
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
