"""Reads the results of `classify` and writes lists of files, in the environment with pyarrow.

    python -m tests.support.parquet_files read URI
    python -m tests.support.parquet_files write FILE NAME...

`read` prints all rows of a folder as JSON; `write` makes a file with a column of names.
"""

from __future__ import annotations

import json
import sys

import pyarrow
from pyarrow import fs, parquet


def _print_rows(uri: str) -> None:
    filesystem, path = fs.FileSystem.from_uri(uri)
    files = sorted(info.path for info in filesystem.get_file_info(fs.FileSelector(path)) if info.is_file)
    files = [file for file in files if not file.rsplit("/", 1)[-1].startswith(".")]  # as Spark does
    print(json.dumps([row for file in files for row in parquet.read_table(file, filesystem=filesystem).to_pylist()]))


def _write(file: str, names: list[str]) -> None:
    parquet.write_table(pyarrow.table({"path": names}), file)


if __name__ == "__main__":
    command, where, *rest = sys.argv[1:]
    if command == "read":
        _print_rows(where)
    else:
        _write(where, rest)
