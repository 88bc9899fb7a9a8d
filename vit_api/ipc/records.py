"""What crosses a process boundary: records of fixed size, and the pipes that carry them.

Knows nothing of who writes or reads them. Pixels never travel here; they stay in the slot table.
"""

from __future__ import annotations

import enum
import fcntl
import math
import os
import select
import struct
import weakref
from collections.abc import Iterable, Iterator
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

MAX_TOP_K = 20
"""Classes in an answer record, and the most that a client may ask for."""

DEFAULT_TOP_K = 5
"""Classes in a response to a client that doesn't say how many it wants."""

_REQUEST = struct.Struct("<II")
_ANSWER = struct.Struct(f"<IIBBHfff{MAX_TOP_K}I{MAX_TOP_K}f")
_PREDICTION = struct.Struct(f"<Bf{MAX_TOP_K}I{MAX_TOP_K}f")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class RequestRecord(NamedTuple):
    """An image waits in `slot`; `generation` tells this use of the slot from earlier ones."""

    slot: int
    generation: int

    def pack(self) -> bytes:
        """Return the record's bytes."""
        return _REQUEST.pack(*self)


class Prediction(NamedTuple):
    """What the model says of one image's most probable classes, at most `MAX_TOP_K` of them.

    All classes' logits would be needed to make a probability of one; the top one's own probability stands for the rest.

    Attributes:
        indices: The classes, most probable first.
        logits: The model's outputs for them, float32.
        top_probability: The first one's, by a softmax over all classes.
    """

    indices: tuple[int, ...]
    logits: tuple[float, ...]
    top_probability: float

    @property
    def is_finite(self) -> bool:
        """Tell whether these are numbers: neither infinite nor NaN, which JSON doesn't have."""
        return math.isfinite(sum(self.logits, self.top_probability))

    @property
    def probabilities(self) -> tuple[float, ...]:
        """What a softmax over all classes gives these, as exact as float32: the first one's is at least 1 / classes."""
        if not self.logits:
            return ()
        top_logit, top_probability = self.logits[0], self.top_probability
        return tuple([top_probability * math.exp(logit - top_logit) for logit in self.logits])

    def pack(self) -> bytes:
        """Return the prediction in as few bytes as it has in an answer's record."""
        padding = (0,) * (MAX_TOP_K - len(self.indices))
        return _PREDICTION.pack(
            len(self.indices), self.top_probability, *self.indices, *padding, *self.logits, *padding
        )

    @classmethod
    def unpack(cls, data: bytes) -> Prediction:
        """Return the prediction that was packed.

        Raises:
            ValueError: The data has another size or counts more classes than it can hold.
        """
        if len(data) != _PREDICTION.size or data[0] > MAX_TOP_K:
            raise ValueError("not a packed prediction")
        count, top_probability, *top = _PREDICTION.unpack(data)
        return cls(tuple(top[:count]), tuple(top[MAX_TOP_K : MAX_TOP_K + count]), top_probability)


NO_PREDICTION = Prediction((), (), 0.0)
"""Of an image that the model did not run for."""


class Status(enum.IntEnum):
    """What became of an image."""

    OK = 0
    SKIPPED = 1
    """Its client left or its deadline passed before the batch; the model never saw it."""
    FAILED = 2
    """The model raised on its batch."""
    OUT_OF_MEMORY = 3
    """The device's memory does not even suffice for this image alone."""
    LOST = 4
    """Its worker died; the owner is to queue it again. Written by the main process."""
    UNAVAILABLE = 5
    """There will be no worker any more. Written by the main process."""


class AnswerRecord(NamedTuple):
    """What a worker says of one slot."""

    slot: int
    generation: int
    status: Status
    prediction: Prediction = NO_PREDICTION
    batch_size: int = 0
    queue_s: float = 0.0
    inference_s: float = 0.0

    def pack(self) -> bytes:
        """Return the record's bytes; the top-k is padded with zeros to its fixed size."""
        indices, logits, top_probability = self.prediction
        padding = (0,) * (MAX_TOP_K - len(indices))
        return _ANSWER.pack(
            self.slot,
            self.generation,
            self.status,
            len(indices),
            self.batch_size,
            self.queue_s,
            self.inference_s,
            top_probability,
            *indices,
            *padding,
            *logits,
            *padding,
        )


def unpack_requests(data: bytes) -> Iterator[RequestRecord]:
    """Yield the requests in `data`, which holds whole records."""
    return map(RequestRecord._make, _REQUEST.iter_unpack(data))


def unpack_answers(data: bytes) -> Iterator[AnswerRecord]:
    """Yield the answers in `data`, which holds whole records."""
    for slot, generation, status, count, batch_size, queue_s, inference_s, certainty, *top in _ANSWER.iter_unpack(data):
        prediction = Prediction(tuple(top[:count]), tuple(top[MAX_TOP_K : MAX_TOP_K + count]), certainty)
        yield AnswerRecord(slot, generation, Status(status), prediction, batch_size, queue_s, inference_s)


class RecordPipe:
    """A queue of fixed-size records between processes: any number of writers and readers.

    POSIX makes a write of at most `PIPE_BUF` bytes to a pipe atomic, so records of many writers never mix, and Linux
    reads under the pipe's lock, so several readers share the records without splitting one. Neither end ever blocks.

    Args:
        record_size: Bytes of one record.
        capacity: Records that fit at the least. A writer that keeps to it never finds the pipe full.
    """

    def __init__(self, record_size: int, capacity: int) -> None:
        self._own(record_size, *os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
        # A record that doesn't fit in the rest of a page starts a new one, so a page may carry one write alone.
        pages = -(-2 * capacity * record_size // _PAGE) + 1
        if fcntl.fcntl(self._writer, fcntl.F_GETPIPE_SZ) < pages * _PAGE:
            fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, pages * _PAGE)

    def _own(self, record_size: int, reader: int, writer: int) -> None:
        self._record_size = record_size
        self._reader, self._writer = reader, writer
        for descriptor in (reader, writer):
            weakref.finalize(self, os.close, descriptor)

    @classmethod
    def for_requests(cls, capacity: int) -> RecordPipe:
        """Make a pipe that carries `RequestRecord` records."""
        # Twice: the main process may write each record again, see `recovery`.
        return cls(_REQUEST.size, 2 * capacity)

    @classmethod
    def for_answers(cls, capacity: int) -> RecordPipe:
        """Make a pipe that carries `AnswerRecord` records."""
        return cls(_ANSWER.size, capacity)

    def fileno(self) -> int:
        """Return the reading end's descriptor, for event loops and `select`."""
        return self._reader

    def write(self, records: Iterable[bytes]) -> None:
        """Write packed records, in as few atomic writes as they fit in.

        Raises:
            BlockingIOError: The pipe is full, though its capacity says that it can't be.
        """
        data = b"".join(records)
        step = select.PIPE_BUF // self._record_size * self._record_size
        for start in range(0, len(data), step):
            os.write(self._writer, data[start : start + step])

    def read(self, most: int) -> bytes:
        """Return up to `most` records that are there now, as bytes; none if the pipe is empty."""
        try:
            return os.read(self._reader, most * self._record_size)
        except BlockingIOError:
            return b""

    def __getstate__(self) -> dict[str, Any]:
        return {
            "record_size": self._record_size,
            "reader": DupFd(self._reader),
            "writer": DupFd(self._writer),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._own(state["record_size"], state["reader"].detach(), state["writer"].detach())
