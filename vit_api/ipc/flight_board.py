"""The flight board: which HTTP process computes which key now, so that the others wait for it.

Knows neither what is computed nor where its result is stored.

Theory of operation
-------------------
The process that computes a key holds a claim on it: a POSIX record lock, fcntl(2), on one byte of an empty in-memory
file, whose offset is part of the key. Only one process can hold it, and the kernel releases it when that process
exits or is killed.

A process that waits for a key is counted in the key's cell, in shared memory. The process that releases a claim writes
the key to the pipe of every process with a count in its cell. A waiting process is counted before it tries to claim the
key once more, and a claim is released before the counts are read; so either that claim succeeds or the key arrives. A
full pipe drops keys and a dead process writes none, so a waiting process also tries again from time to time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref

import numpy as np

from vit_api.ipc.answer_table import KEY_BYTES
from vit_api.ipc.records import RecordPipe
from vit_api.ipc.shared_memory import SharedArrays

_OFFSET = slice(12, 20)
_OFFSET_BITS = 62  # an offset and its end must fit into a signed 64-bit number
_CELL = 20
_CELLS = 256
_KEYS_PER_PIPE = 512
_TAKEN = (errno.EAGAIN, errno.EACCES)


class FlightBoard:
    """The claims of all HTTP processes, and the processes that wait; `ProcessFlights` writes. Created before forking.

    Args:
        processes: Number of HTTP processes.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.claims = os.memfd_create("vit-api-claims", os.MFD_CLOEXEC)
        # A process that closed any descriptor of this file would lose its claims.
        weakref.finalize(self, os.close, self.claims)
        self._shared = SharedArrays({"waiting": (np.uint32, (_CELLS * processes,))})
        self.waiting = self._shared.view("waiting")
        self.finished = [RecordPipe(KEY_BYTES, _KEYS_PER_PIPE) for _ in range(processes)]

    def reset_waiting(self, process: int) -> None:
        """Reset the counts of a process that has just started: its predecessor may have died while it waited."""
        self._shared["waiting"][process :: self.processes] = 0


class ProcessFlights:
    """The flights as one HTTP process sees them. Not thread-safe.

    Args:
        board: All flights.
        process: The number of the HTTP process.
    """

    def __init__(self, board: FlightBoard, process: int) -> None:
        self._board = board
        self._process = process
        self._waiting = board.waiting
        self._finished = board.finished[process]
        self._held: set[bytes] = set()
        board.reset_waiting(process)

    def claim(self, key: bytes) -> bool:
        """Claim a key, to be released once it is computed; return whether no process holds it, this one included."""
        if key in self._held:
            return False
        try:
            fcntl.lockf(self._board.claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset_of(key))
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            # The kernel has no room for another lock: better to compute a key twice than not at all.
        self._held.add(key)
        return True

    def release(self, key: bytes) -> None:
        """Release a claim, and wake the processes that wait for the key."""
        self._held.remove(key)
        fcntl.lockf(self._board.claims, fcntl.LOCK_UN, 1, _offset_of(key))
        first = self._cell_of(key)
        waiting = self._waiting[first : first + self._board.processes].tolist()
        if not any(waiting):
            return
        for pipe, count in zip(self._board.finished, waiting, strict=True):
            if count:
                with contextlib.suppress(BlockingIOError):  # that process reads slowly, or has died
                    pipe.write([key])

    def begin_wait(self, key: bytes) -> None:
        """Wake this process when `key` is released. Claim it once more before waiting."""
        self._waiting[self._cell_of(key) + self._process] += 1

    def end_wait(self, key: bytes) -> None:
        """Undo `begin_wait`."""
        self._waiting[self._cell_of(key) + self._process] -= 1

    def fileno(self) -> int:
        """Return the file descriptor that is readable when there are keys to read."""
        return self._finished.fileno()

    def read(self) -> list[bytes]:
        """Return released keys, which may include some that this process does not wait for."""
        data = self._finished.read(_KEYS_PER_PIPE)
        return [data[start : start + KEY_BYTES] for start in range(0, len(data), KEY_BYTES)]

    def _cell_of(self, key: bytes) -> int:
        return key[_CELL] % _CELLS * self._board.processes


def _offset_of(key: bytes) -> int:
    return int.from_bytes(key[_OFFSET], "little") >> (64 - _OFFSET_BITS)
