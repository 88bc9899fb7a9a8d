"""Lists the files of a run: those that were named, those in folders and object stores, and those in manifests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from vit_api.classify.bulk.storage import StorageError, is_uri, list_files, open_location
from vit_api.classify.image_files import find_images, is_image_name

_MANIFEST = ".parquet"
_COLUMN = "path"

Skip = Callable[[str, str], None]
"""Called with an input that could not be listed, and the reason."""


def list_names(inputs: Sequence[str], skip: Skip) -> Iterator[str]:
    """Yield the name of each file of the inputs once.

    Args:
        inputs: Paths and URIs of files, of folders, and of manifests: Parquet files with a column `path`.
        skip: Called with what can't be listed.
    """
    names = (name for each in inputs for name in _names_of(each, skip))
    # A folder has each file once: only then can the run do without a record of those that it has seen.
    return names if len(inputs) == 1 and not _is_manifest(inputs[0]) else _distinct(names)


def _names_of(name: str, skip: Skip) -> Iterator[str]:
    try:
        if _is_manifest(name):
            yield from _in_manifest(name)
        elif is_uri(name):
            found = False
            for file in list_files(name):
                if file == name or is_image_name(file.rpartition("/")[2]):
                    found = True
                    yield file
            if not found:
                skip(name, "The folder has no image files, such as .jpg or .png.")
        else:
            yield from map(str, find_images([Path(name)], lambda path, why: skip(str(path), why)))
    except StorageError as error:
        skip(name, str(error))


def _is_manifest(name: str) -> bool:
    return name.endswith(_MANIFEST)


def _in_manifest(name: str) -> Iterator[str]:
    filesystem, path = open_location(name)
    try:
        with filesystem.open_input_file(path) as file:
            for batch in parquet.ParquetFile(file).iter_batches(columns=[_COLUMN]):
                for value in batch.column(0).to_pylist():
                    yield os.fsdecode(value)
    except (OSError, pa.ArrowException, KeyError, TypeError, IndexError) as error:
        what = f"it must be a Parquet file with a column {_COLUMN!r} of names"
        raise StorageError(f"The manifest {name!r} can't be read: {what}.") from error


def _distinct(names: Iterable[str]) -> Iterator[str]:
    seen = set()
    for name in names:
        digest = hashlib.blake2b(os.fsencode(_absolute(name)), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield name


def _absolute(name: str) -> str:
    return name if is_uri(name) else os.path.abspath(name)  # noqa: PTH100 - must not resolve links
