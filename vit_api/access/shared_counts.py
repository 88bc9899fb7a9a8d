"""What clients have used up, in shared memory: counted by each HTTP process, seen by all of them.

Knows nothing of who the clients are, nor of how much they may use.

Theory of operation
-------------------
A hash table of a fixed size, of sets with places for a few clients. Every process has places of its own in each set,
and it alone writes them: no lock is needed, which a process could hold when it is killed or stopped, and no count is
lost. What a client has used is the sum over the places that have its key, one a process at the most. A process that
takes the place of a dead one goes on with the latter's counts.

A place has two words of 64 bits: the client's key, and its count with the end of the window that it is for. Each is
written at once, so a count never belongs to another window. A place whose window is over is free. If a process has no
free place in a set, the client that used least there is forgotten: millions of addresses cost no memory, and don't
make the server forget who used much.
"""

from __future__ import annotations

import numpy as np

from vit_api.ipc.shared_memory import SharedArrays

_SETS = 2048
_PLACES = 8
"""Of each process in each set: with 2048 sets 16,384 clients, in 256 KB."""

_COUNT_BITS = 32
_LARGEST_COUNT = 2**_COUNT_BITS - 1


class SharedCounts:
    """The counts of all HTTP processes.

    Args:
        processes: HTTP processes.
    """

    def __init__(self, processes: int) -> None:
        self.width = processes * _PLACES
        shape = (_SETS * self.width,)
        shared = SharedArrays({"keys": (np.uint64, shape), "words": (np.uint64, shape)})
        self.keys = shared.view("keys")
        self.words = shared.view("words")


class CountColumn:
    """The counts as one HTTP process writes them.

    Args:
        counts: The counts of all.
        process: The number of the HTTP process.
    """

    def __init__(self, counts: SharedCounts, process: int) -> None:
        self._keys = counts.keys
        self._words = counts.words
        self._width = counts.width
        self._first = process * _PLACES

    def add(self, key: int, amount: int, end_s: int, now_s: float) -> int:
        """Count for a client, and return what it has used in this window, in all processes.

        Two processes that call this at once may both see the sum of both; neither misses the other.

        Args:
            key: The client's, of 64 bits, such that nobody can choose clients with a certain one.
            amount: What it used; less than 0 to take that back, unless a later window has begun since.
            end_s: When the window ends, in whole seconds.
            now_s: The present time, by the same clock.
        """
        start = key % _SETS * self._width
        own = self._place_of(start + self._first, key, now_s)
        word = self._words[own]
        is_present = word >> _COUNT_BITS == end_s
        if is_present or amount > 0:
            used = (word & _LARGEST_COUNT if is_present else 0) + amount
            self._words[own] = end_s << _COUNT_BITS | min(max(0, used), _LARGEST_COUNT)
        # Only now: of two processes, the one that writes last sees both.
        keys = self._keys[start : start + self._width].tolist()
        words = self._words[start : start + self._width].tolist()
        total, place = 0, -1
        for _ in range(keys.count(key)):
            place = keys.index(key, place + 1)
            if words[place] >> _COUNT_BITS == end_s:
                total += words[place] & _LARGEST_COUNT
        return total

    def _place_of(self, first: int, key: int, now_s: float) -> int:
        """Return a client's place among those of this process in a set; a free one if it has none, or the least used.

        Args:
            first: The first of the places.
            key: The client's.
            now_s: The present time.
        """
        keys = self._keys[first : first + _PLACES].tolist()
        if key in keys:
            return first + int(keys.index(key))
        own = min(range(first, first + _PLACES), key=lambda place: self._weight(place, now_s))
        self._words[own] = 0  # first, lest another process takes it for the new client's
        self._keys[own] = key
        return own

    def _weight(self, place: int, now_s: float) -> int:
        word: int = self._words[place]
        return word & _LARGEST_COUNT if word >> _COUNT_BITS > now_s else -1
