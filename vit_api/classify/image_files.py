"""Finds image files by name and in folders. Knows nothing of what is in them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp"),
        *(".gif", ".bmp", ".tif", ".tiff", ".avif"),
    }
)

ReportFailure = Callable[[Path, str], None]


def find_images(names: Iterable[Path], fail: ReportFailure) -> Iterator[Path]:
    """Yield the files that are named, and the image files in the folders that are named, at any depth.

    A folder's files come sorted by name, before its sorted sub-folders. In folders, what is hidden (its name begins
    with a dot) or no regular file is passed over, and links to folders are not followed. Files that are named
    themselves are taken whatever they are.

    Args:
        names: Files and folders.
        fail: Told of a folder that can't be read, or has no images, and why.
    """
    for name in names:
        if stat.S_ISDIR(_mode(name)):
            yield from _in_folder(name, fail)
        else:
            yield name


def _in_folder(root: Path, fail: ReportFailure) -> Iterator[Path]:
    is_empty = True

    def on_error(error: OSError) -> None:
        nonlocal is_empty
        is_empty = False
        fail(Path(error.filename), f"the folder can't be read: {error.strerror}")

    for folder, subfolders, files in os.walk(root, onerror=on_error):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for file in (Path(folder, name) for name in sorted(files) if _is_image_name(name)):
            # What can't be looked at can't be read either: who reads it will say so.
            if _mode(file) == 0 or stat.S_ISREG(_mode(file)):
                is_empty = False
                yield file
    if is_empty:
        fail(root, "the folder has no image files")


def _mode(path: Path) -> int:
    """Return the kind of file as the system has it, or 0 if it does not say: no permission, a broken link."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
