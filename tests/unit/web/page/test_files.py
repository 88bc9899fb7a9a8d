"""The page's static files."""

from __future__ import annotations

from pathlib import Path

from vit_api.web.page.files import read_files


def test_the_page_has_no_stray_files(tmp_path: Path) -> None:
    """Files that file managers and editors leave behind are neither served nor an error."""
    for name in ("index.html", "page.js", "page.js~", ".DS_Store", ".page.js.swp"):
        (tmp_path / name).write_text("content")
    assert set(read_files(tmp_path)) == {"index.html", "page.js"}
