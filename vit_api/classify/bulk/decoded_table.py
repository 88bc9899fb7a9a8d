"""Passes the decoded files of a part from one process to another as an Arrow table, without further copies of pixels.

Pixels are copied once, next to each other; what reads the table uses them where they are, in Ray's shared memory.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from vit_api.classify.decoder import Decoded


def to_table(part: int, files: Sequence[Decoded]) -> pa.Table:
    """Return a table of one row with the files of a part."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(files, protocol=5, buffer_callback=buffers.append)
    arrays = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
    pixels = np.concatenate(arrays) if arrays else np.empty(0, np.uint8)
    offsets = np.array([0, pixels.size], np.int64)
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(pixels)])
    sizes = pa.array([[array.size for array in arrays]], pa.list_(pa.int64()))
    return pa.table({"part": [part], "head": pa.array([head], pa.large_binary()), "sizes": sizes, "pixels": column})


def from_table(table: pa.Table) -> tuple[int, list[Decoded]]:
    """Return the part and its files, whose pixels are those of the table and read-only."""
    pixels = memoryview(table["pixels"][0].as_buffer())
    ends = np.cumsum(table["sizes"][0].as_py(), dtype=np.int64).tolist()
    buffers = [pixels[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
    files: list[Decoded] = pickle.loads(table["head"][0].as_buffer(), buffers=buffers)
    (part,) = table["part"].to_pylist()
    return part, files
