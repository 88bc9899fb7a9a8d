"""Tensors, inputs and outputs of the Open Inference Protocol, without a server."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.samples import PROCESSORS, small
from vit_api.checkpoints.preprocessing import Preprocessing
from vit_api.checkpoints.processor_file import read_preprocessing
from vit_api.decoding.uploads import Pixels
from vit_api.errors import BadRequest, EmptyUpload, UploadTooLarge, ViTError
from vit_api.ipc.records import MAX_TOP_K, Prediction
from vit_api.web.protocols.open_inference.infer_request import InferRequest, WantedOutput, parse_request
from vit_api.web.protocols.open_inference.inputs import Inputs
from vit_api.web.protocols.open_inference.outputs import Outputs
from vit_api.web.protocols.open_inference.tensors import JsonLimits, Tensor, pack_bytes, unpack_bytes

_LIMITS = JsonLimits(max_bytes=10_000, max_values=1000)


def _preprocessing(kind: str = "vit") -> Preprocessing:
    return read_preprocessing(small(PROCESSORS[kind]), {"model_type": kind})


def _inputs(kind: str = "vit") -> Inputs:
    return Inputs(_preprocessing(kind), max_images=4, max_upload_bytes=10)


@given(st.lists(st.binary(max_size=20)))
def test_packed_bytes_are_unpacked(elements: list[bytes]) -> None:
    """Elements may be anything, including empty."""
    assert unpack_bytes(memoryview(pack_bytes(elements)), len(elements), "x") == elements


@given(st.lists(st.binary(max_size=20), min_size=1), st.data())
def test_a_part_of_packed_bytes_is_refused(elements: list[bytes], data: st.DataObject) -> None:
    """It is refused wherever it ends."""
    packed = pack_bytes(elements)
    end = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(BadRequest):
        unpack_bytes(memoryview(packed[:end]), len(elements), "x")


@given(st.binary(max_size=60), st.integers(0, 4))
def test_any_bytes_are_unpacked_or_refused(data: bytes, count: int) -> None:
    """Only what packing produces is accepted."""
    try:
        elements = unpack_bytes(memoryview(data), count, "x")
    except BadRequest:
        return
    assert len(elements) == count
    assert pack_bytes(elements) == data


@pytest.mark.parametrize("channels", ["last", "first"])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_normalised_pixels_come_back_exactly(kind: str, channels: str) -> None:
    """This holds for every level of every channel in single precision, whatever the mean and deviation."""
    preprocessing = _preprocessing(kind)
    height, width, _ = preprocessing.pixel_shape
    levels = np.resize(np.arange(256, dtype=np.uint8), (1, height, width, 3))
    values = levels.astype(np.float32) * np.float32(preprocessing.scale)
    values = (values - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
    if channels == "first":
        values = np.ascontiguousarray(np.moveaxis(values, -1, 1))
    tensor = Tensor("pixel_values", "FP32", values.shape, memoryview(values.tobytes()))
    assert _inputs(kind).uploads_of(tensor) == [Pixels(levels.tobytes())]


@pytest.mark.parametrize(
    ("value", "is_taken"),
    [(1.0, True), (1.003, True), (-1.003, True), (1.01, False), (-1.01, False)]
    + [(value, False) for value in (np.nan, np.inf, -np.inf, 3e38)],
)
def test_values_that_no_pixel_has(value: float, is_taken: bool) -> None:
    """Half a level beyond the ends counts as rounding; more is an error that names the image."""
    values = np.zeros((2, 3, 32, 32), np.float32)
    values[1, 2, 3, 4] = value
    tensor = Tensor("pixel_values", "FP32", values.shape, memoryview(values.tobytes()))
    if is_taken:
        assert len(_inputs().uploads_of(tensor)) == 2
    else:
        with pytest.raises(BadRequest, match="Element 1 of 'pixel_values'"):
            _inputs().uploads_of(tensor)


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        pytest.param("UINT8", [1, 256], id="too large"),
        pytest.param("UINT8", [1, -1], id="negative"),
        pytest.param("UINT8", [1, 1.0], id="not whole"),
        pytest.param("UINT8", [1, True], id="a boolean"),
        pytest.param("UINT8", [1, "1"], id="a string"),
        pytest.param("UINT8", [1, None], id="null"),
        pytest.param("UINT8", [1, 10**30], id="no integer of any size"),
        pytest.param("FP32", [1, 10**400], id="no float of any size"),
        pytest.param("FP32", [1, "1"], id="a string for a float"),
        pytest.param("FP32", [1, {}], id="an object"),
        pytest.param("UINT8", [1], id="too few"),
        pytest.param("UINT8", [1, 2, 3], id="too many"),
        pytest.param("UINT8", [[1], 2], id="nested unevenly"),
        pytest.param("UINT8", [1, [2]], id="nested unevenly, later"),
        pytest.param("UINT8", [[1], "2"], id="a string beside a list"),
    ],
)
def test_bad_numbers_in_json(datatype: str, data: list[Any]) -> None:
    """No value is taken for another one."""
    with pytest.raises(BadRequest):
        Tensor("x", datatype, (2,), data).numbers()


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[[1], [2]], [[3], [4]]]])
def test_numbers_in_json_may_be_nested(data: list[Any]) -> None:
    """The protocol allows rows of rows."""
    for datatype in ("UINT8", "FP32"):
        assert Tensor("x", datatype, (2, 2), data).numbers().tolist() == [[1, 2], [3, 4]]


class _NeverRead(list[Any]):
    """A list whose length may be read, but not its elements."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("it was gone through")


class _NeverSplit(str):
    """A string that must not be split."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("it was taken apart")


def _nested(depth: int, inner: Any) -> Any:
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    "data",
    [
        pytest.param([["eA=="], _NeverSplit("eA==")], id="a string beside a list"),
        pytest.param([_nested(100, "eA=="), _NeverSplit("eA==")], id="a string beside many lists"),
        pytest.param([["eA=="], _NeverRead(["eA=="] * 2)], id="more than the shape says"),
        pytest.param([_nested(100, "eA=="), _NeverRead(["eA=="] * 2)], id="more beside many lists"),
        pytest.param([["eA=="], [_NeverRead(["eA=="])]], id="more levels than the shape has"),
    ],
)
def test_odd_nesting_is_refused_before_it_is_unfolded(data: list[Any]) -> None:
    """Python unfolds lists and strings without letting other threads run: a small body could hold up everything."""
    with pytest.raises(BadRequest):
        Tensor("image", "BYTES", (2,), data).elements()


def test_no_more_levels_than_the_shape_has() -> None:
    """Each level takes time of its own to check."""
    assert Tensor("x", "UINT8", (1, 1), _nested(3, 7)).numbers().tolist() == [[7]]
    with pytest.raises(BadRequest):
        Tensor("x", "UINT8", (1, 1), _nested(4, 7)).numbers()


_ODD = st.recursive(st.integers(0, 255) | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=12)


@given(st.lists(_ODD, max_size=4), st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_any_nesting_is_unfolded_or_refused(data: list[Any], shape: list[int]) -> None:
    """The numbers keep their order, and there is no other kind of failure."""
    try:
        numbers = Tensor("x", "UINT8", tuple(shape), data).numbers()
    except BadRequest:
        return
    assert numbers.shape == tuple(shape)
    assert numbers.ravel().tolist() == list(_leaves(data))


def _leaves(data: Any) -> Iterator[Any]:
    if not isinstance(data, list):
        yield data
        return
    for inner in data:
        yield from _leaves(inner)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_even_nesting_is_unfolded(shape: list[int], draw: st.DataObject) -> None:
    """It may be as deep as the shape, or less deep."""
    numbers = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
    first = draw.draw(st.integers(0, len(shape) - 1))
    data = numbers.reshape(-1, *shape[len(shape) - first :]).tolist()
    assert Tensor("x", "UINT8", tuple(shape), data).numbers().tolist() == numbers.tolist()


@pytest.mark.parametrize("data", [["eA==", 1], ["eA==", "not base64!"], ["eA=="], [["eA=="], None]])
def test_bad_strings_in_json(data: list[Any]) -> None:
    """The strings are not base64, too few, nested unevenly, or no strings at all."""
    with pytest.raises(BadRequest):
        Tensor("image", "BYTES", (2,), data).elements()


def test_which_string_is_not_base64() -> None:
    """The error names the image, as for any other refusal."""
    with pytest.raises(BadRequest) as raised:
        Tensor("image", "BYTES", (2,), ["eA==", "!!"]).elements()
    assert raised.value.message == "Element 1 of 'image': The data is not valid base64."


@pytest.mark.parametrize(("second", "error"), [(b"", EmptyUpload), (b"x" * 11, UploadTooLarge)])
def test_each_file_has_its_limit(second: bytes, error: type[ViTError]) -> None:
    """The error names the file."""
    data = memoryview(pack_bytes([b"x" * 10, second]))
    with pytest.raises(error) as raised:
        _inputs().uploads_of(Tensor("image", "BYTES", (2,), data))
    assert raised.value.message.startswith("Element 1 of 'image': ")
    assert raised.value.code == error.code


_TOP = Prediction((2, 0), (math.log(3), 0.0), 0.75)


def _word(outputs: Outputs, *wanted: WantedOutput, is_binary: bool = False) -> tuple[bytes, int | None]:
    return outputs.encode(InferRequest(None, "image", wanted, is_binary), [_TOP])


def test_outputs_may_be_mixed() -> None:
    """Some are binary and some in JSON; the binary ones follow in order. Labels may be any text."""
    outputs = Outputs("m", ["Ä", "b", 'a "label"'])
    wanted = [WantedOutput("labels", True), WantedOutput("indices", False), WantedOutput("probabilities", True)]
    body, length = _word(outputs, *wanted)
    answer = json.loads(body[:length])
    assert "id" not in answer
    assert [output.get("data") for output in answer["outputs"]] == [None, [2, 0], None]
    sizes = [output["parameters"]["binary_data_size"] for output in answer["outputs"][::2]]
    labels = body[length:][: sizes[0]]
    assert unpack_bytes(memoryview(labels), 2, "labels") == [b'a "label"', "Ä".encode()]
    assert struct.unpack("<2f", body[length:][sizes[0] :]) == (0.75, 0.25)
    assert sum(sizes) == len(body) - (length or 0)


def test_no_more_classes_than_a_record_has() -> None:
    """Of a thousand, the twenty that a worker answers with."""
    assert Outputs("m", ["x"] * 1000).specs()[0].shape == (-1, MAX_TOP_K)
    assert Outputs("m", ["x"] * 3).specs()[0].shape == (-1, 3)


_KEYS = (
    *("id", "inputs", "outputs", "parameters", "name", "datatype", "shape", "data"),
    *("binary_data_size", "binary_data", "binary_data_output", "classification"),
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("image") | st.just("BYTES"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=5),
    max_leaves=20,
)
_TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["image", "pixels", "pixel_values", 1]),
        "datatype": st.sampled_from(["BYTES", "UINT8", "FP32"]),
    },
    optional={"shape": _JSON, "data": _JSON, "parameters": _JSON},
)
_DOCUMENT = st.fixed_dictionaries(
    {"inputs": st.lists(_TENSOR, min_size=1, max_size=2)}, optional={"id": _JSON, "outputs": _JSON, "parameters": _JSON}
)


@given(_JSON | _DOCUMENT, st.binary(max_size=20), st.booleans())
def test_any_request_is_read_or_refused(document: object, binary: bytes, has_header: bool) -> None:
    """Every failure is one that a client can be told about."""
    text = json.dumps(document).encode()
    _read_or_refuse(text + binary, str(len(text)).encode() if has_header else None)


@given(st.binary(max_size=100), st.none() | st.binary(max_size=5) | st.integers(0, 200).map(lambda n: b"%d" % n))
def test_any_bytes_are_read_or_refused(body: bytes, header_length: bytes | None) -> None:
    """The same."""
    _read_or_refuse(body, header_length)


def _read_or_refuse(body: bytes, header_length: bytes | None) -> None:
    outputs = Outputs("m", ["a", "b", "c"])
    try:
        request, tensor = parse_request(body, header_length, _LIMITS)
        outputs.check(request)
        uploads = _inputs().uploads_of(tensor)
    except ViTError as error:
        error.message.encode()
        assert len(error.message) < 500
        return
    assert 1 <= len(uploads) <= 4
    outputs.encode(request, [_TOP] * len(uploads))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda name: {"inputs": [_input(name=name)]}, id="an input"),
        pytest.param(lambda name: {"inputs": [_input(datatype=name)]}, id="a datatype"),
        pytest.param(lambda name: {"inputs": [_input()], "outputs": [{"name": name}]}, id="an output"),
        pytest.param(lambda name: {"inputs": [_input(shape=[1] * 10_000)]}, id="a shape"),
    ],
)
@pytest.mark.parametrize("name", ["x" * 10_000, "\ud800"], ids=["long", "half a surrogate pair"])
def test_errors_stay_short(change: Callable[[str], object], name: str) -> None:
    """What they quote from a request is bounded."""
    body = json.dumps(change(name)).encode()
    with pytest.raises(ViTError) as raised:
        request, tensor = parse_request(body, None, JsonLimits(100_000, 100_000))
        Outputs("m", ["a", "b"]).check(request)
        _inputs().uploads_of(tensor)
    assert len(raised.value.message.encode()) < 500


def _input(**changes: object) -> dict[str, object]:
    return {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["eA=="]} | changes


@pytest.mark.parametrize("data", [["eA=="] * 1000, ["x" * 10_000]], ids=["values", "bytes"])
def test_a_long_json_is_refused(data: list[str]) -> None:
    """It is refused before it is parsed, which would hold up everything else; the error says what to do instead."""
    with pytest.raises(BadRequest, match="as binary data"):
        parse_request(json.dumps({"inputs": [_input(data=data)]}).encode(), None, _LIMITS)


def test_any_one_image_may_be_json() -> None:
    """It may have its numbers fully nested, or a file of the maximum size."""
    limits = Inputs(_preprocessing(), max_images=4, max_upload_bytes=10 * 2**20).json_limits
    file = base64.b64encode(bytes(10 * 2**20)).decode()
    numbers = np.full((1, 224, 224, 3), -0.0039215686274509665).tolist()
    for data in ([file], numbers):
        shape = [1] if data == [file] else [1, 224, 224, 3]
        assert parse_request(json.dumps({"inputs": [_input(data=data, shape=shape)]}).encode(), None, limits)


def test_a_body_that_is_a_file_is_not_copied() -> None:
    """It may be as large as an upload may be, and many may be in flight."""
    body = b"0123456789"
    _, tensor = parse_request(body, b"0", _LIMITS)
    (upload,) = _inputs().uploads_of(tensor)
    assert upload is body


@pytest.mark.parametrize("request_id", ["\ud800", "x" * 1001, 1, ["x"]])
def test_what_is_no_id(request_id: object) -> None:
    """Half a surrogate pair could not be sent back, and a long id would make a long response."""
    body = json.dumps({"id": request_id, "inputs": [_input()]}).encode()
    with pytest.raises(BadRequest, match="id"):
        parse_request(body, None, _LIMITS)
