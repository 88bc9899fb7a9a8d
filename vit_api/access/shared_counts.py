"""The clients' usage, in shared memory: counted by each HTTP process and visible to all of them.

Knows nothing of the clients' identities and limits.

Theory of operation
-------------------
A set-associative hash table of a fixed size. Each process has its own cells in each set, which it alone writes: no
lock is needed, which a process could hold when it is killed or stopped, and no count is lost. A client's total is the
sum over the cells with its key, at most one for each process. A process that replaces a dead one continues its counts.

A cell has two 64-bit words: the client's key, and its count together with the end of the count's window. Each word is
written atomically, so a count never belongs to another window. A cell whose window is over is free. If a process has no
free cell in a set, the client that used least there is evicted: millions of addresses need no more memory, and do not
make the server lose count of heavy users.
"""

from __future__ import annotations

import numpy as np

from vit_api.ipc.shared_memory import SharedArrays

_SETS = 2048
_CELLS = 8
"""Cells of a process in each set; with 2048 sets, 16,384 clients in 256 KiB."""

_COUNT_BITS = 32
_MAX_COUNT = 2**_COUNT_BITS - 1


class SharedCounts:
    """The counts of all HTTP processes.

    Args:
        processes: Number of HTTP processes.
    """

    def __init__(self, processes: int) -> None:
        self.width = processes * _CELLS
        shape = (_SETS * self.width,)
        shared = SharedArrays({"keys": (np.uint64, shape), "words": (np.uint64, shape)})
        self.keys = shared.view("keys")
        self.words = shared.view("words")


class CountColumn:
    """The cells that one HTTP process writes.

    Args:
        counts: The counts of all HTTP processes.
        process: The number of this HTTP process.
    """

    def __init__(self, counts: SharedCounts, process: int) -> None:
        self._keys = counts.keys
        self._words = counts.words
        self._width = counts.width
        self._first = process * _CELLS

    def add(self, key: int, amount: int, end_s: int, now_s: float) -> int:
        """Add to a client's count, and return its total in this window over all processes.

        If two processes call this at the same time, both may see the sum; at least one of them does.

        Args:
            key: The client's 64-bit key, which clients must not be able to choose.
            amount: How much to add; negative to take back, which is ignored once a later window has begun.
            end_s: When the window ends, in whole seconds.
            now_s: The current time, by the same clock.
        """
        start = key % _SETS * self._width
        own = self._cell_of(start + self._first, key, now_s)
        word = self._words[own]
        is_present = word >> _COUNT_BITS == end_s
        if is_present or amount > 0:
            used = (word & _MAX_COUNT if is_present else 0) + amount
            self._words[own] = end_s << _COUNT_BITS | min(max(0, used), _MAX_COUNT)
        # Only after the write: of two processes, the one that writes last sees both.
        keys = self._keys[start : start + self._width].tolist()
        words = self._words[start : start + self._width].tolist()
        total, cell = 0, -1
        for _ in range(keys.count(key)):
            cell = keys.index(key, cell + 1)
            if words[cell] >> _COUNT_BITS == end_s:
                total += words[cell] & _MAX_COUNT
        return total

    def _cell_of(self, first: int, key: int, now_s: float) -> int:
        """Return a client's cell among those of this process in a set, replacing a free one or the least used.

        Args:
            first: The first of the cells.
            key: The client's key.
            now_s: The current time.
        """
        keys = self._keys[first : first + _CELLS].tolist()
        if key in keys:
            return first + int(keys.index(key))
        own = min(range(first, first + _CELLS), key=lambda cell: self._weight(cell, now_s))
        self._words[own] = 0  # first, so that no other process reads the old count as the new client's
        self._keys[own] = key
        return own

    def _weight(self, cell: int, now_s: float) -> int:
        word: int = self._words[cell]
        return word & _MAX_COUNT if word >> _COUNT_BITS > now_s else -1
