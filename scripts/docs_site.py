"""A hook of MkDocs: adds the repository's pages outside docs/ to the site, and has links lead to them.

Pages link each other by their places in the repository, so that they work on GitHub. A link to another file of the
repository leads to a copy of it in the site; a link to what does not exist fails the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "vulnerabilities.md",
}
"""Pages outside docs/, by their places in the repository; the values are those in the site."""

_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#|<)([^)#\s]+)(#[^)\s]*)?(\))")
_COPIES = "files"
"""The folder of the site that has the copies."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and the files that they link."""
    for source, page_place in PAGES.items():
        files.append(File.generated(config, page_place, abs_src_path=str(ROOT / source)))
    for page in [*(ROOT / source for source in PAGES), *sorted((ROOT / "docs").glob("*.md"))]:
        for _, target, _, _ in _LINK.findall(page.read_text()):
            path = (page.parent / target).resolve()
            place = _place(path)
            if path.is_file() and place is not None and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite a page's links from places in the repository to places in the site."""
    sources = {place: source for source, place in PAGES.items()}
    source = ROOT / sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def rewrite(found: re.Match[str]) -> str:
        start, target, anchor, end = found.groups()
        place = _place((source.parent / target).resolve())
        if place is None:
            return found[0]  # MkDocs reports it
        return f"{start}{posixpath.relpath(place, here or '.')}{anchor or ''}{end}"

    return _LINK.sub(rewrite, markdown)


def _place(path: Path) -> str | None:
    """Return the place in the site of a file of the repository; None if it is none."""
    if not path.is_relative_to(ROOT) or not path.exists():
        return None
    relative = path.relative_to(ROOT).as_posix()
    if relative in PAGES:
        return PAGES[relative]
    if relative.startswith("docs/"):
        return relative.removeprefix("docs/")
    if path.suffix in (".png", ".svg"):
        return relative
    return f"{_COPIES}/{relative}{'' if path.suffix else '.txt'}"
