"""Tensors as the protocol sends them: datatypes, shapes, JSON and binary data. Pure; knows nothing of images or HTTP.

Binary data is as in Triton's binary tensor data extension: little-endian, row by row, without padding; an element of
BYTES is its length in 4 bytes, then its bytes. https://github.com/triton-inference-server/server, docs/protocol.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_api.decoding.uploads import decode_base64
from vit_api.errors import BadRequest

Shape = tuple[int, ...]

DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "INT32": np.dtype("<i4"), "FP32": np.dtype("<f4")}
"""The datatypes of numbers that this server takes or gives. BYTES is the other one."""

_LENGTH = struct.Struct("<I")
_NUMBER_TYPES: dict[str, set[type]] = {"UINT8": {int}, "FP32": {int, float}}


@dataclass(frozen=True)
class JsonLimits:
    """What the JSON of a request may have; the rest is to be sent as binary data.

    Attributes:
        max_bytes: Of the JSON at the most.
        max_values: Values and lists at the most.
    """

    max_bytes: int
    max_values: int


@dataclass(frozen=True)
class TensorSpec:
    """What an input or an output looks like, for those who ask before they send.

    Attributes:
        name: Its name.
        datatype: As the protocol names it.
        shape: Its dimensions; -1: any.
        description: What is in it.
    """

    name: str
    datatype: str
    shape: Shape
    description: str


@dataclass(frozen=True)
class Tensor:
    """One input, checked as far as that goes without knowing what it is for.

    Attributes:
        name: Its name.
        datatype: As the protocol names it.
        shape: Its dimensions.
        data: Binary data, what the JSON has, or the bytes of the only element alone, without their length.
    """

    name: str
    datatype: str
    shape: Shape
    data: memoryview | list[Any] | bytes

    def elements(self) -> list[bytes]:
        """Return the elements of a BYTES tensor. In JSON they are base64, since a JSON string can't be any bytes.

        Raises:
            BadRequest: They are not as many as the shape says, or malformed.
        """
        if isinstance(self.data, bytes):
            return [self.data]
        if isinstance(self.data, memoryview):
            return unpack_bytes(self.data, self._size(), self.name)
        texts = self._flat(self.data)
        if not all(isinstance(text, str) for text in texts):
            raise BadRequest(f"the data of {self.name!r} must be strings of base64")
        return [self._decoded(text, number) for number, text in enumerate(texts)]

    def numbers(self) -> NDArray[Any]:
        """Return the numbers of a UINT8 or FP32 tensor in its shape; those of FP32 may be float64.

        Raises:
            BadRequest: They are not as many as the shape says, or not of the datatype.
        """
        if isinstance(self.data, list):
            return self._numbers_in_json(self.data).reshape(self.shape)
        dtype = DTYPES[self.datatype]
        expected = self._size() * dtype.itemsize
        if len(self.data) != expected:
            raise BadRequest(f"{self.name!r} has {len(self.data)} bytes; its shape and datatype need {expected}")
        return np.frombuffer(self.data, dtype).reshape(self.shape)

    def _numbers_in_json(self, data: list[Any]) -> NDArray[Any]:
        values = self._flat(data)
        wrong = BadRequest(f"the data of {self.name!r} must be numbers of the datatype {self.datatype}")
        # Asked before numpy, which would take strings and booleans for numbers.
        if not set(map(type, values)) <= _NUMBER_TYPES[self.datatype]:
            raise wrong
        try:
            if self.datatype == "FP32":
                return np.array(values, np.float64)
            numbers = np.array(values, np.int64)
        except OverflowError:
            raise wrong from None
        if numbers.min(initial=0) < 0 or numbers.max(initial=0) > np.iinfo(np.uint8).max:
            raise wrong
        return numbers.astype(np.uint8)

    def _decoded(self, text: str, number: int) -> bytes:
        try:
            return decode_base64(text)
        except BadRequest:
            raise BadRequest("it is not valid base64").about(element(self.name, number)) from None

    def _flat(self, data: list[Any]) -> list[Any]:
        """Return what nested lists have, row by row: JSON data may be nested or not.

        Each level is checked and counted before it is copied, and there are no more than the shape has: Python does all
        this without letting other threads run, so a client must not choose how much work it is.
        """
        for _ in self.shape:
            if not data or not isinstance(data[0], list):
                break
            if not all(isinstance(row, list) for row in data):
                raise BadRequest(f"the data of {self.name!r} is nested unevenly")
            count = sum(map(len, data))
            if count > self._size():
                self._check_count(count)
            data = list(chain.from_iterable(data))
        self._check_count(len(data))
        return data

    def _size(self) -> int:
        return math.prod(self.shape)

    def _check_count(self, count: int) -> None:
        if count != self._size():
            raise BadRequest(f"{self.name!r} has {count} elements; its shape {list(self.shape)} needs {self._size()}")


def element(name: str, number: int) -> str:
    """Return what to call one element of a tensor, such as one image of an input."""
    return f"element {number} of {name!r}"


def unpack_bytes(data: memoryview, count: int, name: str) -> list[bytes]:
    """Return the elements of a BYTES tensor's binary data.

    Args:
        data: The binary data.
        count: How many elements there must be.
        name: The tensor's, for errors.

    Raises:
        BadRequest: A length leads out of the data, or the elements are fewer or more.
    """
    elements: list[bytes] = []
    position = 0
    while position < len(data):
        if len(elements) == count:
            raise BadRequest(f"the binary data of {name!r} goes on after its {count} elements")
        start = position + _LENGTH.size
        if start > len(data):
            raise BadRequest(f"the binary data of {name!r} ends within the length of element {len(elements)}")
        position = start + int(_LENGTH.unpack_from(data, position)[0])
        if position > len(data):
            raise BadRequest(f"the binary data of {name!r} ends within element {len(elements)}")
        elements.append(bytes(data[start:position]))
    if len(elements) < count:
        raise BadRequest(f"the binary data of {name!r} has {len(elements)} elements; its shape needs {count}")
    return elements


def pack_bytes(elements: Sequence[bytes]) -> bytes:
    """Return the binary data of a BYTES tensor."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))
