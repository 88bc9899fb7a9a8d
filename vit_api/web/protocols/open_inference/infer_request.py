"""Parses inference requests: the one input, and the requested outputs. Pure; knows nothing of images.

The JSON is $inference_request of the Open Inference Protocol, with the parameters of Triton's binary tensor data,
classification and schedule policy extensions. https://kserve.github.io/website, "Open Inference Protocol", and
https://github.com/triton-inference-server/server, docs/protocol.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from vit_api.errors import BadRequest
from vit_api.urgency import Urgency
from vit_api.web.parameters import ALL
from vit_api.web.protocols.open_inference.inputs import IMAGE
from vit_api.web.protocols.open_inference.tensors import JsonLimits, Tensor

HEADER_LENGTH = b"inference-header-content-length"
"""HTTP header with the length of the JSON, for bodies in which binary data follows it."""

_MAX_LENGTH_DIGITS = 12
_MAX_NAME_CHARACTERS = 100
"""Error messages repeat names, so they are short."""

_MAX_ID_CHARACTERS = 1000
_MAX_DIMENSIONS = 8
_MAX_DIMENSION_LENGTH = 2**31
_SHARED_MEMORY = "shared_memory_region"
_PARAMETERS = ("binary_data_output", "priority", "timeout", "order", "top_k")
_BY_PROBABILITY, _BY_CLASS = "probability", "class"
_NORMAL_PRIORITY = 1
"""Of Triton's priorities a smaller number comes first, and 0 is the default."""

_MAX_UINT64 = 2**64 - 1
_US_IN_S = 1_000_000


@dataclass(frozen=True)
class WantedOutput:
    """An output that a client requests.

    Attributes:
        name: The output's name.
        is_binary: Whether to send it as binary data.
        classes: Maximum number of classes, if a classification is requested; None requests the tensor itself.
    """

    name: str
    is_binary: bool
    classes: int | None = None


@dataclass(frozen=True)
class InferRequest:
    """An inference request without its data, which may take much memory and must not be kept until the response.

    Attributes:
        id: The ID to repeat in the response; None if there is none.
        input_name: The name of the one input.
        outputs: The requested outputs; if empty, all.
        is_binary: Whether outputs are sent as binary data unless they say otherwise.
        urgency: How urgent it is; None if it does not say.
        timeout_s: Seconds until its response is due; None if it does not say.
        is_by_class: Whether outputs have all classes in the order of the classes, and not the most probable first.
        top_k: Number of the most probable classes; 0 for all, None if it does not say.
    """

    id: str | None
    input_name: str
    outputs: tuple[WantedOutput, ...]
    is_binary: bool
    urgency: Urgency | None = None
    timeout_s: float | None = None
    is_by_class: bool = False
    top_k: int | None = None


def is_raw(header_length: bytes | None) -> bool:
    """Return whether a body is one image file without JSON, as in Triton's raw binary requests.

    Args:
        header_length: The value of the HTTP header `HEADER_LENGTH`; None if it is missing.
    """
    return header_length is not None and header_length.isdigit() and int(header_length[:_MAX_LENGTH_DIGITS]) == 0


def parse_request(body: bytes, header_length: bytes | None, limits: JsonLimits) -> tuple[InferRequest, Tensor]:
    """Parse a request's body; return the request and its one input.

    Args:
        body: The body.
        header_length: The value of the HTTP header `HEADER_LENGTH`; None if it is missing.
        limits: Limits of the JSON.

    Raises:
        BadRequest: The body does not follow the protocol.
    """
    length = _json_length(body, header_length)
    if is_raw(header_length):
        return InferRequest(None, IMAGE, (), is_binary=True), Tensor(IMAGE, "BYTES", (1,), body)
    document = _parse_json(body, length, limits)
    parameters = _parameters(document)
    for name in parameters.keys() - set(_PARAMETERS):
        known = f"{', '.join(_PARAMETERS[:-1])} or {_PARAMETERS[-1]}"
        raise BadRequest(f"The request parameter {name[:_MAX_NAME_CHARACTERS]!r} is not supported. Use {known}.")
    tensor = _input(document, memoryview(body)[length:])
    is_binary = _flag(parameters, "binary_data_output", False)
    outputs = tuple(_wanted(output, is_binary) for output in _list(document, "outputs"))
    if len({output.name for output in outputs}) < len(outputs):
        raise BadRequest("An output is requested twice. Name each output once.")
    priority, timeout_us = _unsigned(parameters, "priority"), _unsigned(parameters, "timeout")
    request = InferRequest(
        _id(document),
        tensor.name,
        outputs,
        is_binary,
        urgency=(Urgency.LOW if priority > _NORMAL_PRIORITY else Urgency.NORMAL) if priority else None,
        timeout_s=timeout_us / _US_IN_S if timeout_us else None,
        is_by_class=_is_by_class(parameters),
        top_k=_top_k(parameters),
    )
    if request.is_by_class and request.top_k:
        raise BadRequest("With the order 'class' all classes are returned: leave 'top_k' out.")
    return request, tensor


def _is_by_class(parameters: dict[str, Any]) -> bool:
    order = parameters.get("order", _BY_PROBABILITY)
    if order not in (_BY_PROBABILITY, _BY_CLASS):
        raise BadRequest(f"'order' must be '{_BY_PROBABILITY}' or '{_BY_CLASS}'.")
    return bool(order == _BY_CLASS)


def _top_k(parameters: dict[str, Any]) -> int | None:
    """Return the number of classes that are wanted; 0 for all."""
    value = parameters.get("top_k")
    if value is None:
        return None
    if value == ALL:
        return 0
    if type(value) is not int or value < 1:
        raise BadRequest(f"'top_k' must be a positive integer or '{ALL}'.")
    return value


def _unsigned(parameters: dict[str, Any], key: str) -> int:
    """Return a parameter that is an unsigned number of 64 bits, 0 by default."""
    value = parameters.get(key, 0)
    if type(value) is not int or not 0 <= value <= _MAX_UINT64:
        raise BadRequest(f"{key!r} must be an integer from 0 to 2**64 - 1.")
    return value


def _id(document: dict[str, Any]) -> str | None:
    request_id = document.get("id")
    if request_id is None:
        return None
    if not isinstance(request_id, str) or len(request_id) > _MAX_ID_CHARACTERS:
        raise BadRequest(f"'id' must be a string of at most {_MAX_ID_CHARACTERS} characters.")
    try:
        request_id.encode()
    except UnicodeEncodeError:
        raise BadRequest("'id' has half of a surrogate pair, which can't be encoded as UTF-8.") from None
    return request_id


def _json_length(body: bytes, header_length: bytes | None) -> int:
    if header_length is None:
        return len(body)
    if not header_length.isdigit() or len(header_length) > _MAX_LENGTH_DIGITS or int(header_length) > len(body):
        raise BadRequest(
            f"Inference-Header-Content-Length must be an integer from 0 to the body's length, {len(body)}."
        )
    return int(header_length)


def _parse_json(body: bytes, length: int, limits: JsonLimits) -> dict[str, Any]:
    if length > limits.max_bytes or sum(body.count(mark, 0, length) for mark in (b",", b"[", b"{")) > limits.max_values:
        limit = f"{limits.max_values} values or {limits.max_bytes / 2**20:.4g} MiB"
        raise BadRequest(f"The JSON has more than {limit}. Send the tensor as binary data.")
    try:
        document = json.loads(body[:length])
    except (ValueError, RecursionError):
        raise BadRequest("The JSON is malformed.") from None
    if not isinstance(document, dict):
        raise BadRequest("The inference request must be a JSON object.")
    return document


def _input(document: dict[str, Any], binary: memoryview) -> Tensor:
    inputs = _list(document, "inputs")
    if len(inputs) != 1:
        raise BadRequest(f"'inputs' must have exactly one input, not {len(inputs)}.")
    name, datatype = _text(inputs[0], "name"), _text(inputs[0], "datatype")
    parameters = _parameters(inputs[0])
    shape = tuple(_list(inputs[0], "shape"))
    if len(shape) > _MAX_DIMENSIONS or not all(_is_dimension(length) for length in shape):
        raise BadRequest(f"The shape of {name!r} must be a list of at most {_MAX_DIMENSIONS} non-negative integers.")
    _refuse_shared_memory(parameters)
    return Tensor(name, datatype, shape, _data(inputs[0], name, parameters.get("binary_data_size"), binary))


def _data(tensor: dict[str, Any], name: str, size: Any, binary: memoryview) -> memoryview | list[Any]:
    """Return the data of the one input: its `data` in the JSON, or everything after the JSON."""
    if size is None:
        if len(binary):
            raise BadRequest(f"{len(binary)} bytes follow the JSON, but {name!r} has no binary_data_size.")
        data = tensor.get("data")
        if not isinstance(data, list):
            raise BadRequest(
                f"The input {name!r} has no data. Send a list in 'data', or binary data and its binary_data_size."
            )
        return data
    if type(size) is not int or size != len(binary):
        raise BadRequest(f"The binary_data_size of {name!r} must be the number of bytes after the JSON, {len(binary)}.")
    if "data" in tensor:
        raise BadRequest(f"The input {name!r} has its data both in the JSON and as binary data. Send only one of them.")
    return binary


def _wanted(output: Any, is_binary: bool) -> WantedOutput:
    name, parameters = _text(output, "name"), _parameters(output)
    _refuse_shared_memory(parameters)
    classes = parameters.get("classification")
    if classes is not None and type(classes) is not int:
        raise BadRequest(f"'classification' of {name!r} must be an integer.")
    return WantedOutput(name, _flag(parameters, "binary_data", is_binary), classes)


def _text(tensor: Any, key: str) -> str:
    text = tensor.get(key) if isinstance(tensor, dict) else None
    if not isinstance(text, str) or len(text) > _MAX_NAME_CHARACTERS:
        raise BadRequest(
            f"The {key} of each input and output must be a string of at most {_MAX_NAME_CHARACTERS} characters."
        )
    return text


def _is_dimension(length: Any) -> bool:
    return type(length) is int and 0 <= length <= _MAX_DIMENSION_LENGTH


def _parameters(of: dict[str, Any]) -> dict[str, Any]:
    parameters = of.get("parameters")
    if not isinstance(parameters, dict | None):
        raise BadRequest("'parameters' must be an object.")
    return parameters or {}


def _list(of: dict[str, Any], key: str) -> list[Any]:
    values = of.get(key)
    if not isinstance(values, list | None):
        raise BadRequest(f"{key!r} must be a list.")
    return values or []


def _flag(parameters: dict[str, Any], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{key!r} must be true or false.")
    return value


def _refuse_shared_memory(parameters: dict[str, Any]) -> None:
    if _SHARED_MEMORY in parameters:
        raise BadRequest("Shared memory is not supported. Send the data in the request.")
