"""Fixed-size records between processes, and the pipes that carry them.

Pixels stay in the slot table. Knows nothing of the writers and readers.
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

from vit_api.ipc import descriptors

MAX_TOP_K = 20
"""Number of classes in an answer record; an answer with more is long, see `Prediction.is_long`."""

DEFAULT_TOP_K = 5
"""Number of classes in a response unless the client requests another."""

ALL_CLASSES = 1
"""Part of an answer: every class, not only the most probable ones."""

EMBEDDING = 2
"""Part of an answer: the embedding."""

MAX_EMBEDDING = 16_384
"""Maximum number of an embedding's dimensions; the widest classifier of transformers, a RegNet, has 11,110."""

_REQUEST = struct.Struct("<II")
_ANSWER = struct.Struct(f"<IIBBHfffI{MAX_TOP_K}I{MAX_TOP_K}f")
_PREDICTION = struct.Struct(f"<Bf{MAX_TOP_K}I{MAX_TOP_K}f")
_LONG = struct.Struct("<B3xIIf")  # mark, classes, dimensions, probability of the first class
_LONG_MARK = 0xFF  # no prediction of the fixed size has so many classes
_NUMBER_BYTES = 4
PACKED_PREDICTION_BYTES = _PREDICTION.size
_TOP = struct.Struct(f"<BfI{(MAX_TOP_K - 1) * 4}xf")
"""The start of a packed prediction: the number of classes, the top probability, the top class and its logit."""
_UNPACK_TOP = _TOP.unpack_from
_PAGE = os.sysconf("SC_PAGE_SIZE")


class RequestRecord(NamedTuple):
    """An image waits in `slot`; `generation` distinguishes this use of the slot from earlier ones."""

    slot: int
    generation: int

    def pack(self) -> bytes:
        """Return the record's bytes."""
        return _REQUEST.pack(*self)


def _sigmoid(logit: float) -> float:
    small = math.exp(-abs(logit))
    return 1 / (1 + small) if logit >= 0 else small / (1 + small)


class Prediction(NamedTuple):
    """The most probable classes of one image: `MAX_TOP_K` or, if it is long, all of them.

    A softmax and a sigmoid give the same order of classes. A softmax needs the logits of all of them; the probability
    of the top one makes up for the omitted ones.

    Attributes:
        indices: The classes, most probable first.
        logits: The model's outputs for them, float32.
        top_probability: The probability of the first class, by a softmax over all classes.
        embedding: float32 [dimensions] of length 1, as bytes; empty if it was not asked for, or the model has none.
    """

    indices: tuple[int, ...]
    logits: tuple[float, ...]
    top_probability: float
    embedding: bytes = b""

    @property
    def is_long(self) -> bool:
        """Whether it has more than fits in an answer record."""
        return len(self.indices) > MAX_TOP_K or bool(self.embedding)

    def with_parts(self, parts: int) -> Prediction:
        """Return it without the parts that are not among these: `ALL_CLASSES`, `EMBEDDING`, both or 0."""
        if not self.is_long:
            return self
        count = len(self.indices) if parts & ALL_CLASSES else MAX_TOP_K
        embedding = self.embedding if parts & EMBEDDING else b""
        return Prediction(self.indices[:count], self.logits[:count], self.top_probability, embedding)

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite; JSON has neither infinity nor NaN."""
        numbers = math.isfinite(sum(self.logits, self.top_probability))
        return numbers and (not self.embedding or all(map(math.isfinite, self.embedding_values())))

    def embedding_values(self) -> tuple[float, ...]:
        """Return the embedding as numbers."""
        return struct.unpack(f"<{len(self.embedding) // _NUMBER_BYTES}f", self.embedding)

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The probabilities by a softmax over all classes, exact to float32: the first is at least 1 / classes."""
        if not self.logits:
            return ()
        top_logit, top_probability = self.logits[0], self.top_probability
        return tuple([top_probability * math.exp(logit - top_logit) for logit in self.logits])

    @property
    def sigmoids(self) -> tuple[float, ...]:
        """The probabilities by a sigmoid of each logit, without overflow for large negative ones."""
        return tuple([_sigmoid(logit) for logit in self.logits])

    def scores(self, *, sigmoid: bool) -> tuple[float, ...]:
        """Return the model's probabilities: `sigmoids` for a multi-label model, else `probabilities`."""
        return self.sigmoids if sigmoid else self.probabilities

    def pack(self) -> bytes:
        """Return the prediction as bytes, as compact as in an answer record unless it is long."""
        if len(self.indices) > MAX_TOP_K or self.embedding:
            return self._pack_long()
        padding = (0,) * (MAX_TOP_K - len(self.indices))
        return _PREDICTION.pack(
            len(self.indices), self.top_probability, *self.indices, *padding, *self.logits, *padding
        )

    @classmethod
    def unpack(cls, data: bytes) -> Prediction:
        """Return the packed prediction.

        Raises:
            ValueError: The data has another size, or more classes than fit in it.
        """
        if len(data) != _PREDICTION.size or data[0] > MAX_TOP_K:
            return cls._unpack_long(data)
        count, top_probability, *top = _PREDICTION.unpack(data)
        return cls(tuple(top[:count]), tuple(top[MAX_TOP_K : MAX_TOP_K + count]), top_probability)

    def _pack_long(self) -> bytes:
        count, dimensions = len(self.indices), len(self.embedding) // _NUMBER_BYTES
        head = _LONG.pack(_LONG_MARK, count, dimensions, self.top_probability)
        return head + struct.pack(f"<{count}I{count}f", *self.indices, *self.logits) + self.embedding

    @classmethod
    def _unpack_long(cls, data: bytes) -> Prediction:
        if not data or packed_size(data) != len(data):
            raise ValueError("not a packed prediction")
        _, count, dimensions, top_probability = _LONG.unpack_from(data)
        numbers = struct.unpack_from(f"<{count}I{count}f", data, _LONG.size)
        embedding = data[len(data) - dimensions * _NUMBER_BYTES :] if dimensions else b""
        return cls(numbers[:count], numbers[count:], top_probability, embedding)


def packed_size(data: bytes) -> int:
    """Return the size of the packed prediction that `data` starts with; 0 if it starts with none."""
    if data and data[0] <= MAX_TOP_K:
        return _PREDICTION.size
    if len(data) < _LONG.size or data[0] != _LONG_MARK:
        return 0
    _, count, dimensions, _ = _LONG.unpack_from(data)
    return int(_LONG.size + (2 * count + dimensions) * _NUMBER_BYTES)


def max_packed_size(classes: int, dimensions: int = MAX_EMBEDDING) -> int:
    """Return the size of the longest packed prediction of a model with so many classes."""
    return _LONG.size + (2 * classes + dimensions) * _NUMBER_BYTES


def top_of(packed: bytes, *, sigmoid: bool) -> tuple[int, float]:
    """Return the most probable class of a packed prediction and its probability, without unpacking the others.

    Args:
        packed: A prediction of at least one class.
        sigmoid: Whether the model's probabilities are by a sigmoid.
    """
    if packed[0] == _LONG_MARK:
        _, count, _, top_probability = _LONG.unpack_from(packed)
        index, logit = struct.unpack_from(f"<I{(count - 1) * _NUMBER_BYTES}xf", packed, _LONG.size)
    else:
        _, top_probability, index, logit = _UNPACK_TOP(packed)
    return index, _sigmoid(logit) if sigmoid else top_probability


NO_PREDICTION = Prediction((), (), 0.0)
"""For an image that the model did not run for."""


class Status(enum.IntEnum):
    """The outcome of an image."""

    OK = 0
    SKIPPED = 1
    """It was abandoned before its batch was formed; the model never ran for it."""
    FAILED = 2
    """The model raised on its batch, or its results are not finite."""
    OUT_OF_MEMORY = 3
    """The device has not enough memory even for a batch of this image only."""
    LOST = 4
    """Its worker died; its owner must queue it again. Written by the main process."""
    UNAVAILABLE = 5
    """No further worker will be started. Written by the main process."""


class AnswerRecord(NamedTuple):
    """A worker's answer for one slot.

    Of a long prediction the record carries the most probable classes only; `long_bytes` is the size of the whole one,
    packed, in the slot's memory for long answers, and 0 otherwise.
    """

    slot: int
    generation: int
    status: Status
    prediction: Prediction = NO_PREDICTION
    batch_size: int = 0
    queue_s: float = 0.0
    inference_s: float = 0.0
    long_bytes: int = 0

    def pack(self) -> bytes:
        """Return the record's bytes; the top-k is padded with zeros to its fixed size."""
        indices, logits, top_probability, _ = self.prediction
        if len(indices) > MAX_TOP_K:
            indices, logits = indices[:MAX_TOP_K], logits[:MAX_TOP_K]
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
            self.long_bytes,
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
    for fields in _ANSWER.iter_unpack(data):
        slot, generation, status, count, batch_size, queue_s, inference_s, certainty, long_bytes, *top = fields
        prediction = Prediction(tuple(top[:count]), tuple(top[MAX_TOP_K : MAX_TOP_K + count]), certainty)
        yield AnswerRecord(slot, generation, Status(status), prediction, batch_size, queue_s, inference_s, long_bytes)


class RecordPipe:
    """A queue of fixed-size records between any number of writing and reading processes.

    POSIX makes a write of at most `PIPE_BUF` bytes to a pipe atomic, so records of several writers never mix, and Linux
    reads under the pipe's lock, so several readers share the records without splitting one. Neither end ever blocks.

    Args:
        record_size: Bytes of one record.
        capacity: Minimum number of records that fit. Writers that keep to it never find the pipe full.
    """

    def __init__(self, record_size: int, capacity: int) -> None:
        self._own(record_size, *descriptors.pipe())
        # A write that doesn't fit in the rest of a page starts a new one, so a page may carry no more than one write.
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
        # Twice the capacity: the main process may write each record again; see processes.recovery.
        return cls(_REQUEST.size, 2 * capacity)

    @classmethod
    def for_answers(cls, capacity: int) -> RecordPipe:
        """Make a pipe that carries `AnswerRecord` records."""
        return cls(_ANSWER.size, capacity)

    def fileno(self) -> int:
        """Return the file descriptor of the reading end, for event loops and `select`."""
        return self._reader

    def write(self, records: Iterable[bytes]) -> None:
        """Write packed records in as few atomic writes as possible.

        Raises:
            BlockingIOError: The pipe is full, because more records were written than its capacity.
        """
        data = b"".join(records)
        step = select.PIPE_BUF // self._record_size * self._record_size
        for start in range(0, len(data), step):
            os.write(self._writer, data[start : start + step])

    def read(self, max_records: int) -> bytes:
        """Return up to `max_records` records as bytes; none if the pipe is empty."""
        try:
            return os.read(self._reader, max_records * self._record_size)
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
