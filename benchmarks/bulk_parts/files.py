"""Makes folders to classify: any number of names for some distinct files. Knows nothing of who reads them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.harness import pictures

_BLOT = pictures.small_png()


def link(folder: Path, contents: Iterator[bytes], distinct: int, names: int, suffix: str) -> None:
    """Write `distinct` files to a folder, and give them `names` names by hard links, as a disk has no room for more.

    Args:
        folder: A folder that does not exist.
        contents: The files' contents.
        distinct: How many of them are written.
        names: Number of names in the folder.
        suffix: What they end with.
    """
    folder.mkdir()
    first = [folder / f"{number:07}{suffix}" for number in range(min(distinct, names))]
    for file, content in zip(first, contents, strict=False):
        file.write_bytes(content)
    for number, file in zip(range(len(first), names), itertools.cycle(first), strict=False):
        os.link(file, folder / f"{number:07}{suffix}")


def small_pngs() -> Iterator[bytes]:
    """Yield distinct files of 700 bytes: what follows a PNG's end is not decoded."""
    for number in itertools.count():
        yield _BLOT + np.int64(number).tobytes()
