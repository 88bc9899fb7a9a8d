"""Finds image files by name and in folders. Never opens them."""

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
    """Yield the given files, and the image files in the given folders, at any depth.

    A folder's files come first, sorted by name, and then its sorted subfolders. Hidden files and folders (with a name
    that starts with a dot) and anything but regular files are skipped, and links to folders are not followed. Files
    that are given by name are yielded whatever they are.

    Args:
        names: Files and folders.
        fail: Called with a folder that can't be read, or that has no images, and the reason.
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
        fail(Path(error.filename), f"The folder can't be read: {error.strerror}.")

    for folder, subfolders, files in os.walk(root, onerror=on_error):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for file in (Path(folder, name) for name in sorted(files) if is_image_name(name)):
            # A file that can't be inspected is yielded, so that reading it reports the reason.
            if _mode(file) == 0 or stat.S_ISREG(_mode(file)):
                is_empty = False
                yield file
    if is_empty:
        fail(root, "The folder has no image files, such as .jpg or .png.")


def _mode(path: Path) -> int:
    """Return the file's mode, or 0 if it can't be determined: no permission, or a broken link."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def is_image_name(name: str) -> bool:
    """Return whether a file in a folder is taken for an image."""
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
