"""The protocol's tensors: datatypes, shapes, JSON and binary data. Pure; knows nothing of images or HTTP.

Binary data is that of Triton's binary tensor data extension: little-endian, row-major, without padding; an element of
BYTES is a 4-byte length followed by its bytes. https://github.com/triton-inference-server/server, docs/protocol.
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
"""The numeric datatypes of inputs and outputs; the only other datatype is BYTES."""

_LENGTH = struct.Struct("<I")
_NUMBER_TYPES: dict[str, set[type]] = {"UINT8": {int}, "FP32": {int, float}}


@dataclass(frozen=True)
class JsonLimits:
    """Limits of a request's JSON; larger tensors must be sent as binary data.

    Attributes:
        max_bytes: Maximum size of the JSON.
        max_values: Maximum number of values, lists and objects.
    """

    max_bytes: int
    max_values: int


@dataclass(frozen=True)
class TensorSpec:
    """The description of an input or output, for the model's metadata.

    Attributes:
        name: The tensor's name.
        datatype: The protocol's name of its datatype.
        shape: Its dimensions; -1 stands for any length.
        description: What it contains.
    """

    name: str
    datatype: str
    shape: Shape
    description: str


@dataclass(frozen=True)
class Tensor:
    """An input; its data is not yet checked against its shape and datatype.

    Attributes:
        name: The tensor's name.
        datatype: The protocol's name of its datatype.
        shape: Its dimensions.
        data: Binary data, the list in the JSON, or the bytes of a single element without their length.
    """

    name: str
    datatype: str
    shape: Shape
    data: memoryview | list[Any] | bytes

    def elements(self) -> list[bytes]:
        """Return the elements of a BYTES tensor. In JSON they are base64, since its strings can't hold all bytes.

        Raises:
            BadRequest: The elements are malformed, or their number does not match the shape.
        """
        if isinstance(self.data, bytes):
            return [self.data]
        if isinstance(self.data, memoryview):
            return unpack_bytes(self.data, self._size(), self.name)
        texts = self._flat(self.data)
        if not all(isinstance(text, str) for text in texts):
            raise BadRequest(f"The data of {self.name!r} must be a list of base64 strings.")
        return [self._decoded(text, number) for number, text in enumerate(texts)]

    def numbers(self) -> NDArray[Any]:
        """Return the numbers of a UINT8 or FP32 tensor in its shape; FP32 numbers may be returned as float64.

        Raises:
            BadRequest: The numbers are not of the datatype, or their number does not match the shape.
        """
        if isinstance(self.data, list):
            return self._numbers_in_json(self.data).reshape(self.shape)
        dtype = DTYPES[self.datatype]
        expected = self._size() * dtype.itemsize
        if len(self.data) != expected:
            raise BadRequest(
                f"The data of {self.name!r} must have {expected} bytes by its shape and datatype, not {len(self.data)}."
            )
        return np.frombuffer(self.data, dtype).reshape(self.shape)

    def _numbers_in_json(self, data: list[Any]) -> NDArray[Any]:
        values = self._flat(data)
        wrong = BadRequest(f"The data of {self.name!r} must be numbers of the datatype {self.datatype}.")
        # Checked here because numpy would convert strings and booleans to numbers.
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
            raise BadRequest("The data is not valid base64.").about(element(self.name, number)) from None

    def _flat(self, data: list[Any]) -> list[Any]:
        """Return the values of JSON data in row-major order; it may be nested or flat.

        Each level is checked and counted before it is copied, and no more levels are read than the shape has: this
        holds the GIL, so a client must not control how long it takes.
        """
        for _ in self.shape:
            if not data or not isinstance(data[0], list):
                break
            if not all(isinstance(row, list) for row in data):
                raise BadRequest(f"The lists in the data of {self.name!r} are nested unevenly.")
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
            needed = f"{self._size()} elements by its shape {list(self.shape)}"
            raise BadRequest(f"The data of {self.name!r} must have {needed}, not {count}.")


def element(name: str, number: int) -> str:
    """Return the name of an element of a tensor in error messages, such as an image of an input."""
    return f"Element {number} of {name!r}"


def unpack_bytes(data: memoryview, count: int, name: str) -> list[bytes]:
    """Return the elements of a BYTES tensor's binary data.

    Args:
        data: The binary data.
        count: The required number of elements.
        name: The tensor's name, for error messages.

    Raises:
        BadRequest: An element exceeds the data, or there are fewer or more elements than `count`.
    """
    elements: list[bytes] = []
    position = 0
    while position < len(data):
        if len(elements) == count:
            raise BadRequest(f"The binary data of {name!r} has extra bytes after its {count} elements.")
        start = position + _LENGTH.size
        if start > len(data):
            raise BadRequest(f"The binary data of {name!r} ends within the length of element {len(elements)}.")
        position = start + int(_LENGTH.unpack_from(data, position)[0])
        if position > len(data):
            raise BadRequest(f"The binary data of {name!r} ends within element {len(elements)}.")
        elements.append(bytes(data[start:position]))
    if len(elements) < count:
        raise BadRequest(f"The binary data of {name!r} must have {count} elements by its shape, not {len(elements)}.")
    return elements


def pack_bytes(elements: Sequence[bytes]) -> bytes:
    """Return the binary data of a BYTES tensor."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))
