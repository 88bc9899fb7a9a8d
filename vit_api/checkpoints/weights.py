"""Owns which safetensors files hold a checkpoint's weights; knows nothing of what is in them."""

from __future__ import annotations

import json
from pathlib import Path

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_LENGTH_BYTES = 8  # a safetensors file: the header's length (little-endian), the header (JSON), the tensors


def weight_files(folder: Path) -> tuple[str, ...]:
    """Name the files that hold the weights, present or not: one file, or the shards that an index names.

    As in transformers, a single file wins over shards. The answer is empty where there is neither.

    Raises:
        ValueError: The index is malformed, or names a file outside the folder.
    """
    if (folder / SINGLE).is_file():
        return (SINGLE,)
    if not (folder / INDEX).is_file():
        return ()
    try:
        shards = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{INDEX} is malformed") from error
    for shard in shards:
        is_name = isinstance(shard, str) and "\0" not in shard and Path(shard).name == shard
        if not is_name or Path(shard).suffix != ".safetensors":
            raise ValueError(f"{INDEX} names {shard!r}, which is not a safetensors file beside it")
    return tuple(shards)


def is_safetensors(path: Path) -> bool:
    """Tell whether a file starts as a safetensors file does; a Git LFS pointer, for one, doesn't."""
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES + 1)
    header_bytes = int.from_bytes(start[:_LENGTH_BYTES], "little")
    return start[_LENGTH_BYTES:] == b"{" and _LENGTH_BYTES + header_bytes <= path.stat().st_size
