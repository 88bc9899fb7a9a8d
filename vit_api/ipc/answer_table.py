"""The answer table: the results of all HTTP processes, in shared memory, where each of them looks results up.

What an HTTP process wrote remains when it is killed, and its successor continues in the same region. Knows nothing of
images, models or predictions: a value is a fixed number of bytes.

Theory of operation
-------------------
Each HTTP process has a region, which it alone writes and all read. A region is a ring of entries: a new one overwrites
the oldest. The table is thus bounded, takes memory only as it fills, and evicts in the order of expiry.

An index leads from a key, which is a hash, to its entries. It is a set-associative hash table: each bucket has `_WAYS`
cells for every region, and a cell is a fingerprint (four bytes of the key) and a position in the region's ring. The
cells of all regions are adjacent in a bucket, so that a look-up is one search for the fingerprint, however many regions
there are. If all cells of a region in a bucket are taken, the one of the oldest entry is overwritten, and that entry is
lost. With three cells for each entry, this happens to about one entry in a thousand.

There is no lock. A reader relies only on a complete entry: its key must be the requested one, and its checksum must
match. An entry that is read while it is overwritten, or whose writer was killed half-way, or whose parts become visible
in another order than they were written (as on ARM), fails one of these checks and is a miss. A stale cell leads to an
entry with another key, which is a miss as well.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from typing import NamedTuple

import numpy as np

from vit_api.ipc.shared_memory import SharedArrays

KEY_BYTES = 32
"""Length of a key: a SHA-256, any part of which is uniformly distributed."""

_WAYS = 8
_CELLS_PER_ENTRY = 3
_CELL = struct.Struct("<II")  # fingerprint, position + 1; an empty cell is zero
_CELLS = struct.Struct("<" + _WAYS * "II")  # those of a region in a bucket
_FINGERPRINT = slice(0, 4)
_BUCKET = slice(4, 12)
_CHECKSUM = struct.Struct("<I")
_ALIGNMENT = 8


class Answer(NamedTuple):
    """An entry that was found.

    Attributes:
        value: What was stored.
        expires_at: When it expires, in seconds of the clock that its writer used.
    """

    value: bytes
    expires_at: float


class AnswerTable:
    """The entries of all regions, read-only; `RegionWriter` writes.

    Args:
        regions: Number of HTTP processes.
        capacity: Maximum number of entries in a region.
        value_bytes: Length of a value.

    Attributes:
        regions: Number of HTTP processes.
        capacity: Maximum number of entries in a region.
        torn_reads: How often this process has read an entry whose checksum did not fit.
    """

    def __init__(self, regions: int, capacity: int, value_bytes: int) -> None:
        self.regions = regions
        self.capacity = capacity
        self.torn_reads = 0
        self.value_bytes = value_bytes
        self._content = struct.Struct(f"<{KEY_BYTES}sdQ{value_bytes}s")  # key, expiry, epoch, value
        size = _CHECKSUM.size + self._content.size
        self._stride = -(-size // _ALIGNMENT) * _ALIGNMENT
        self._buckets = -(-capacity * _CELLS_PER_ENTRY // _WAYS)
        self._width = regions * _WAYS * _CELL.size
        shared = SharedArrays(
            {
                "written": (np.uint64, (regions,)),
                "cells": (np.uint8, (self._buckets * self._width,)),
                "entries": (np.uint8, (regions * capacity * self._stride,)),
            }
        )
        self._written = shared.view("written")  # entries ever written to each region
        self._cells = shared.view("cells")
        self._entries = shared.view("entries")

    def get(self, key: bytes, now: float, epoch: int) -> Answer | None:
        """Return the entry of a key that expires last, or None if there is none.

        Args:
            key: The key.
            now: The time, in seconds; an entry that has expired by then is not found.
            epoch: An entry of another epoch is not found.
        """
        first = self._bucket_of(key)
        cells = self._cells[first : first + self._width].tobytes()
        fingerprint = key[_FINGERPRINT]
        found = None
        at = cells.find(fingerprint)
        while at >= 0:
            cell, offset = divmod(at, _CELL.size)
            if offset == 0:
                answer = self._read(cell, cells, key, now, epoch)
                if answer is not None and (found is None or answer.expires_at > found.expires_at):
                    found = answer
            at = cells.find(fingerprint, at + 1)
        return found

    def _bucket_of(self, key: bytes) -> int:
        """Return where the bucket of a key begins."""
        return int.from_bytes(key[_BUCKET], "little") % self._buckets * self._width

    def _read(self, cell: int, cells: bytes, key: bytes, now: float, epoch: int) -> Answer | None:
        """Return the entry that a cell of a bucket leads to, if it is the one wanted."""
        position = _CELL.unpack_from(cells, cell * _CELL.size)[1] - 1
        if not 0 <= position < self.capacity:
            return None
        start = self._start_of(cell // _WAYS, position)
        entry = self._entries[start : start + self._stride].tobytes()  # a copy, which does not change any more
        content = entry[_CHECKSUM.size : _CHECKSUM.size + self._content.size]
        stored_key, expires_at, stored_epoch, value = self._content.unpack(content)
        if stored_key != key:
            return None
        if zlib.crc32(content) != _CHECKSUM.unpack_from(entry)[0]:
            self.torn_reads += 1
            return None
        if stored_epoch != epoch or expires_at <= now:
            return None
        return Answer(value, expires_at)

    def _start_of(self, region: int, position: int) -> int:
        return (region * self.capacity + position) * self._stride

    def count(self, now: float, epoch: int) -> int:
        """Count the entries of all regions that are not expired and of this epoch, by a few reads of each region."""
        return sum(self._count(region, now, epoch) for region in range(self.regions))

    def _count(self, region: int, now: float, epoch: int) -> int:
        def is_live(number: int) -> bool:
            start = self._start_of(region, number % self.capacity)
            _, expires_at, stored_epoch, _ = self._content.unpack_from(self._entries, start + _CHECKSUM.size)
            return bool(stored_epoch == epoch and expires_at > now)

        written = self._written[region]
        numbers = range(max(0, written - self.capacity), written)
        return len(numbers) - bisect_left(numbers, True, key=is_live)


class RegionWriter:
    """Writes one region. For one HTTP process at a time.

    What was written for the region's number before, by a process that died, stays.

    Args:
        table: The table.
        region: The number of the HTTP process.
    """

    def __init__(self, table: AnswerTable, region: int) -> None:
        self._table = table
        self._region = region
        self._written = table._written
        self._ways_offset = region * _WAYS * _CELL.size

    def put(self, key: bytes, value: bytes, expires_at: float, epoch: int) -> None:
        """Store a value in place of the oldest entry.

        Neither `expires_at` nor `epoch` may be less than those of the entries before; `AnswerTable.count` relies on it.

        A process that is killed here leaves the region usable at each step: what it was overwriting is out of the
        index first, and the position counts as written last.

        Args:
            key: The key; it is found under no older value of this region any more.
            value: What to store, `value_bytes` long.
            expires_at: When it expires, in seconds.
            epoch: The epoch in which it was computed.
        """
        written = self._written[self._region]
        position = written % self._table.capacity
        if written >= self._table.capacity:
            self._drop_cell(position)
        self._write_entry(position, self._table._content.pack(key, expires_at, epoch, value))
        self._write_cell(key, position)
        self._written[self._region] = written + 1

    def _write_entry(self, position: int, content: bytes) -> None:
        start = self._table._start_of(self._region, position)
        entry = _CHECKSUM.pack(zlib.crc32(content)) + content
        self._table._entries[start : start + len(entry)] = entry

    def _ways_of(self, key: bytes) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """Return where this region's cells in the bucket of a key begin, and their fingerprints and positions + 1."""
        first = self._table._bucket_of(key) + self._ways_offset
        ways = _CELLS.unpack_from(self._table._cells, first)
        return first, ways[::2], ways[1::2]

    def _drop_cell(self, position: int) -> None:
        """Clear the cell that leads to the entry at a position."""
        start = self._table._start_of(self._region, position) + _CHECKSUM.size
        first, _, following = self._ways_of(self._table._entries[start : start + KEY_BYTES].tobytes())
        if position + 1 in following:
            self._set_cell(first, following.index(position + 1), 0, 0)

    def _write_cell(self, key: bytes, position: int) -> None:
        """Store a position in the cell of the same key, or an empty one, or that of the oldest entry."""
        fingerprint = int.from_bytes(key[_FINGERPRINT], "little")
        first, fingerprints, following = self._ways_of(key)
        if fingerprint in fingerprints:
            way = fingerprints.index(fingerprint)
        elif 0 in following:
            way = following.index(0)
        else:
            ages = [(position + 1 - other) % self._table.capacity for other in following]
            way = ages.index(max(ages))
        self._set_cell(first, way, fingerprint, position + 1)

    def _set_cell(self, first: int, way: int, fingerprint: int, following: int) -> None:
        start = first + way * _CELL.size
        self._table._cells[start : start + _CELL.size] = _CELL.pack(fingerprint, following)
