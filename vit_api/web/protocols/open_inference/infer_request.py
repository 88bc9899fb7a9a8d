"""What an inference request says: its one input, and the outputs that it wants. Pure; knows nothing of images.

The JSON is $inference_request of the Open Inference Protocol, with the parameters of Triton's binary tensor data and
classification extensions. https://kserve.github.io/website, "Open Inference Protocol", and
https://github.com/triton-inference-server/server, docs/protocol.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from vit_api.errors import BadRequest
from vit_api.web.protocols.open_inference.inputs import IMAGE
from vit_api.web.protocols.open_inference.tensors import JsonLimits, Tensor

HEADER_LENGTH = b"inference-header-content-length"
"""The HTTP header that says how long the JSON is, where binary data follows it."""

_MOST_LENGTH_DIGITS = 12
_MOST_NAME_CHARACTERS = 100
"""Of what an error may repeat."""

_MOST_ID_CHARACTERS = 1000
_MOST_DIMENSIONS = 8
_LONGEST_DIMENSION = 2**31
_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True)
class WantedOutput:
    """One output that a client asks for.

    Attributes:
        name: The output's.
        is_binary: Whether to send binary data.
        classes: How many classes to name instead of the tensor itself, if there are so many; None: the tensor.
    """

    name: str
    is_binary: bool
    classes: int | None = None


@dataclass(frozen=True)
class InferRequest:
    """An inference request, without its data, which may take much memory and is not needed until the answer.

    Attributes:
        id: What the answer repeats; None if there is none.
        input_name: The one input's.
        outputs: The outputs that it names; none: all.
        is_binary: Whether outputs that it does not name are to be binary data.
    """

    id: str | None
    input_name: str
    outputs: tuple[WantedOutput, ...]
    is_binary: bool


def is_raw(header_length: bytes | None) -> bool:
    """Tell whether a body has no JSON, but is one image file, as in Triton's raw binary requests.

    Args:
        header_length: What the HTTP header `HEADER_LENGTH` says; None without one.
    """
    return header_length is not None and header_length.isdigit() and int(header_length[:_MOST_LENGTH_DIGITS]) == 0


def parse_request(body: bytes, header_length: bytes | None, limits: JsonLimits) -> tuple[InferRequest, Tensor]:
    """Read a request's body; return what it asks for, and its one input.

    Args:
        body: The body.
        header_length: What the HTTP header `HEADER_LENGTH` says; None without one.
        limits: Of the JSON.

    Raises:
        BadRequest: It is not as the protocol says.
    """
    length = _json_length(body, header_length)
    if is_raw(header_length):
        return InferRequest(None, IMAGE, (), is_binary=True), Tensor(IMAGE, "BYTES", (1,), body)
    document = _parse_json(body, length, limits)
    parameters = _parameters(document)
    tensor = _input(document, memoryview(body)[length:])
    is_binary = _flag(parameters, "binary_data_output", False)
    outputs = tuple(_wanted(output, is_binary) for output in _list(document, "outputs"))
    if len({output.name for output in outputs}) < len(outputs):
        raise BadRequest("an output is asked for twice")
    return InferRequest(_id(document), tensor.name, outputs, is_binary), tensor


def _id(document: dict[str, Any]) -> str | None:
    request_id = document.get("id")
    if request_id is None:
        return None
    if not isinstance(request_id, str) or len(request_id) > _MOST_ID_CHARACTERS:
        raise BadRequest(f"the request's id must be a string of up to {_MOST_ID_CHARACTERS} characters")
    try:
        request_id.encode()
    except UnicodeEncodeError:
        raise BadRequest("the request's id has half a surrogate pair, which can't be sent back") from None
    return request_id


def _json_length(body: bytes, header_length: bytes | None) -> int:
    if header_length is None:
        return len(body)
    if not header_length.isdigit() or len(header_length) > _MOST_LENGTH_DIGITS or int(header_length) > len(body):
        raise BadRequest(f"Inference-Header-Content-Length must be a length within the body's {len(body)} bytes")
    return int(header_length)


def _parse_json(body: bytes, length: int, limits: JsonLimits) -> dict[str, Any]:
    if length > limits.max_bytes or sum(body.count(mark, 0, length) for mark in (b",", b"[", b"{")) > limits.max_values:
        most = f"{limits.max_values} values or {limits.max_bytes / 2**20:.4g} MB"
        raise BadRequest(f"the JSON has more than {most}; send the tensor as binary data")
    try:
        document = json.loads(body[:length])
    except (ValueError, RecursionError):
        raise BadRequest("the inference request's JSON is malformed") from None
    if not isinstance(document, dict):
        raise BadRequest("the inference request must be a JSON object")
    return document


def _input(document: dict[str, Any], binary: memoryview) -> Tensor:
    inputs = _list(document, "inputs")
    if len(inputs) != 1:
        raise BadRequest(f"send exactly one input, not {len(inputs)}")
    name, datatype = _text(inputs[0], "name"), _text(inputs[0], "datatype")
    parameters = _parameters(inputs[0])
    shape = tuple(_list(inputs[0], "shape"))
    if len(shape) > _MOST_DIMENSIONS or not all(_is_dimension(length) for length in shape):
        raise BadRequest(f"the shape of {name!r} must be a list of a few whole numbers")
    _refuse_shared_memory(parameters)
    return Tensor(name, datatype, shape, _data(inputs[0], name, parameters.get("binary_data_size"), binary))


def _data(tensor: dict[str, Any], name: str, size: Any, binary: memoryview) -> memoryview | list[Any]:
    """Return the data of the only input: in the JSON, or all that follows it."""
    if size is None:
        if len(binary):
            raise BadRequest(f"{len(binary)} bytes follow the JSON that no input's binary_data_size speaks of")
        data = tensor.get("data")
        if not isinstance(data, list):
            raise BadRequest(f"the input {name!r} has no data: a list, or binary data and its binary_data_size")
        return data
    if type(size) is not int or size != len(binary):
        raise BadRequest(f"the binary_data_size of {name!r} is not what follows the JSON, {len(binary)} bytes")
    if "data" in tensor:
        raise BadRequest(f"the input {name!r} has its data twice: in the JSON, and as binary data")
    return binary


def _wanted(output: Any, is_binary: bool) -> WantedOutput:
    name, parameters = _text(output, "name"), _parameters(output)
    _refuse_shared_memory(parameters)
    classes = parameters.get("classification")
    if classes is not None and type(classes) is not int:
        raise BadRequest(f"the classification of {name!r} must be a whole number")
    return WantedOutput(name, _flag(parameters, "binary_data", is_binary), classes)


def _text(tensor: Any, key: str) -> str:
    text = tensor.get(key) if isinstance(tensor, dict) else None
    if not isinstance(text, str) or len(text) > _MOST_NAME_CHARACTERS:
        raise BadRequest(f"the {key} of each input and output must be a short string")
    return text


def _is_dimension(length: Any) -> bool:
    return type(length) is int and 0 <= length <= _LONGEST_DIMENSION


def _parameters(of: dict[str, Any]) -> dict[str, Any]:
    parameters = of.get("parameters")
    if not isinstance(parameters, dict | None):
        raise BadRequest("parameters must be an object")
    return parameters or {}


def _list(of: dict[str, Any], key: str) -> list[Any]:
    values = of.get(key)
    if not isinstance(values, list | None):
        raise BadRequest(f"{key} must be a list")
    return values or []


def _flag(parameters: dict[str, Any], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{key} must be true or false")
    return value


def _refuse_shared_memory(parameters: dict[str, Any]) -> None:
    if _SHARED_MEMORY in parameters:
        raise BadRequest("this server shares no memory with clients; send the data in the request")
