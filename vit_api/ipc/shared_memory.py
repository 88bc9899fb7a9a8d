"""Arrays in anonymous shared memory, for forked and spawned processes. Knows nothing of their meaning."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Mapping
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vit_api.ipc import descriptors

Layout = Mapping[str, tuple[DTypeLike, tuple[int, ...]]]

_CACHE_LINE = 64


class SharedArrays:
    """Named NumPy arrays in one `memfd` segment, initially zero.

    A `memfd` rather than `/dev/shm`, which is limited to 64 MB in a container by default, and where a named segment
    outlives a SIGKILL. The kernel allocates a page when it is first written, so a large table costs only what is used.

    The object can be pickled only while a process is being spawned, which then inherits the file descriptor.

    Args:
        layout: The dtype and shape of each array, by name.

    Attributes:
        arrays: The arrays by name. All processes that hold the segment see the same memory.
    """

    def __init__(self, layout: Layout) -> None:
        self._map(layout, descriptors.memory(max(_end_of(layout), 1)))

    def _map(self, layout: Layout, fd: int) -> None:
        self._layout = layout
        self._fd = fd
        weakref.finalize(self, os.close, fd)  # the arrays hold the mapping, which does not need it
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self.arrays: dict[str, NDArray[Any]] = {}
        for name, (dtype, shape, offset) in _offsets(layout).items():
            count = int(np.prod(shape))
            self.arrays[name] = np.frombuffer(self._memory, dtype, count, offset).reshape(shape)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    def view(self, name: str) -> Any:
        """Return a memory view of a one-dimensional array, which is faster to index element by element than NumPy."""
        return memoryview(self.arrays[name].data)

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self._layout, "fd": DupFd(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._map(state["layout"], state["fd"].detach())


def _offsets(layout: Layout) -> dict[str, tuple[DTypeLike, tuple[int, ...], int]]:
    """Lay the arrays out in sequence, each aligned to a cache line."""
    placed, offset = {}, 0
    for name, (dtype, shape) in layout.items():
        placed[name] = (dtype, shape, offset)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        offset += -(-size // _CACHE_LINE) * _CACHE_LINE
    return placed


def _end_of(layout: Layout) -> int:
    return sum(
        -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // _CACHE_LINE) * _CACHE_LINE
        for dtype, shape in layout.values()
    )
