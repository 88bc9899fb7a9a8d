"""Finds the safetensors files with a checkpoint's weights. Knows of the tensors in them only names and shapes."""

from __future__ import annotations

import json
from pathlib import Path

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files with pickled weights, which can run code when they are loaded."""

_LENGTH_BYTES = 8  # a safetensors file: the header's length (little-endian), the header (JSON), the tensors


def weight_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files with the weights: a single file, or the shards that an index lists.

    As in transformers, a single file takes precedence over shards. A listed shard may be missing. Without a file and
    an index, the result is empty.

    Raises:
        ValueError: The index is malformed, or lists a file outside the folder.
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
            raise ValueError(f"{INDEX} lists {shard!r}, which is not the name of a safetensors file in the same folder")
    return tuple(shards)


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor in a safetensors file, by name, from its header.

    Raises:
        ValueError: The header is malformed.
    """
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(_LENGTH_BYTES), "little")))
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    try:
        return {name: list(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    except (KeyError, TypeError) as error:
        raise ValueError("a tensor has no shape") from error


def is_safetensors(path: Path) -> bool:
    """Return whether a file starts like a safetensors file; a Git LFS pointer, for example, does not."""
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES + 1)
    header_bytes = int.from_bytes(start[:_LENGTH_BYTES], "little")
    return start[_LENGTH_BYTES:] == b"{" and _LENGTH_BYTES + header_bytes <= path.stat().st_size
