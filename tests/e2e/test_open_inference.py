"""The Open Inference Protocol v2 on a real server, with Triton's client, and httpx for malformed requests."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray

from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, wait_until
from vit_api import __version__
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.decoding import images
from vit_api.web.responses import to_json

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_THREE = (ROOT / "examples" / "digit-3.png").read_bytes()
_INFER = "/v2/models/digits/infer"
_LENGTH = "Inference-Header-Content-Length"
_FRESH = {"Cache-Control": "no-cache"}
_PREPROCESSING = load_checkpoint("digits").preprocessing


@pytest.fixture
def client(digits_server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    """Connect Triton's client to a server."""
    with triton.InferenceServerClient(_address(digits_server)) as connected:
        yield connected


def _address(server: RunningServer) -> str:
    return server.url.removeprefix("http://")


def _pixels(upload: bytes) -> NDArray[np.uint8]:
    """Return the pixels that the server decodes from an image file."""
    return images.decode(upload, _PREPROCESSING, max_side=4096, exact=False)


def _normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the pixels as the checkpoint's image processor normalises them."""
    rescaled = pixels.astype(np.float32) * np.float32(_PREPROCESSING.scale)
    return (rescaled - np.float32(_PREPROCESSING.mean)) / np.float32(_PREPROCESSING.std)


def _tensor(name: str, datatype: str, data: Any, *, is_binary: bool = True) -> triton.InferInput:
    return triton.InferInput(name, data.shape, datatype).set_data_from_numpy(data, binary_data=is_binary)


def _files(*uploads: bytes) -> triton.InferInput:
    return _tensor("image", "BYTES", np.array(uploads, object))


def _top(result: triton.InferResult, image: int = 0) -> list[tuple[str, float]]:
    labels, probabilities = result.as_numpy("labels")[image], result.as_numpy("probabilities")[image]
    pairs = zip(labels, probabilities, strict=True)
    return [(label.decode() if isinstance(label, bytes) else label, float(p)) for label, p in pairs]


def _same(ours: list[tuple[str, float]]) -> Any:
    return [(label, pytest.approx(p, abs=1e-5)) for label, p in ours]


def test_the_server_describes_itself(client: triton.InferenceServerClient) -> None:
    """Liveness, readiness, metadata and the list of models are served."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata() == {
        "name": "vit-api",
        "version": __version__,
        "extensions": [
            "classification",
            "binary_tensor_data",
            "model_configuration",
            "schedule_policy",
            "statistics",
        ],
    }
    index = [{"name": "digits", "version": "1", "state": "READY", "reason": ""}]
    assert client.get_model_repository_index() == index


@pytest.mark.parametrize(
    ("name", "version", "is_ready"),
    [("digits", "", True), ("digits", "1", True), ("digits", "2", False), ("other", "", False), ("a/b", "1", False)],
)
def test_readiness_of_a_model(client: triton.InferenceServerClient, name: str, version: str, is_ready: bool) -> None:
    """The served model is ready, with its version and without."""
    assert client.is_model_ready(name, version) is is_ready


@pytest.mark.parametrize("version", ["", "1"])
def test_the_models_metadata(client: triton.InferenceServerClient, version: str) -> None:
    """Metadata has names, datatypes and shapes, and says that probabilities are sorted."""
    metadata = client.get_model_metadata("digits", version)
    assert (metadata["name"], metadata["versions"]) == ("digits", ["1"])
    shapes = {t["name"]: (t["datatype"], t["shape"]) for t in metadata["inputs"] + metadata["outputs"]}
    assert shapes == {
        "image": ("BYTES", [-1]),
        "pixels": ("UINT8", [-1, 32, 32, 3]),
        "pixel_values": ("FP32", [-1, 3, 32, 32]),
        "probabilities": ("FP32", [-1, 10]),
        "logits": ("FP32", [-1, 10]),
        "embedding": ("FP32", [-1, -1]),
        "indices": ("INT32", [-1, 10]),
        "labels": ("BYTES", [-1, 10]),
    }
    assert "sorted" in metadata["outputs"][0]["parameters"]["description"]


def test_the_models_configuration(client: triton.InferenceServerClient) -> None:
    """The configuration has Triton's form, with batching and tensors without the batch dimension."""
    config = client.get_model_config("digits")
    assert (config["name"], config["max_batch_size"]) == ("digits", 32)
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 5000
    assert config["input"][1] == {
        "name": "pixels",
        "data_type": "TYPE_UINT8",
        "dims": [32, 32, 3],
        "format": "FORMAT_NHWC",
        "optional": True,
    }
    assert config["output"][0] == {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [10]}


def test_perf_analyzer_finds_what_it_reads(client: triton.InferenceServerClient) -> None:
    """It ends with an assertion of its JSON library if a field is missing or of another type.

    What it reads stands in its `model_parser.cc` and `triton_client_backend.cc`.
    """
    metadata, config = client.get_model_metadata("digits"), client.get_model_config("digits")
    assert isinstance(config["max_batch_size"], int)
    assert isinstance(config["response_cache"]["enable"], bool)
    assert "dynamic_batching" in config and "sequence_batching" not in config
    for ours, theirs in (("inputs", "input"), ("outputs", "output")):
        assert {tensor["name"] for tensor in metadata[ours]} == {tensor["name"] for tensor in config[theirs]}
        for tensor in metadata[ours]:
            assert isinstance(tensor["datatype"], str)
            assert all(isinstance(dimension, int) for dimension in tensor["shape"])
    assert all(isinstance(tensor["optional"], bool) for tensor in config["input"])
    (stats,) = client.get_inference_statistics()["model_stats"]
    assert isinstance(stats["name"], str) and isinstance(stats["version"], str)
    counts = [stats["inference_count"], stats["execution_count"]]
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"):
        counts += stats["inference_stats"][name]["count"], stats["inference_stats"][name]["ns"]
    assert all(isinstance(count, int) and count >= 0 for count in counts)


def test_statistics_grow(client: triton.InferenceServerClient) -> None:
    """Counts and times grow by what ran and what failed: all fields that perf_analyzer reads."""

    def stats(name: str = "digits") -> dict[str, Any]:
        (found,) = client.get_inference_statistics(name)["model_stats"]
        return found

    before = stats()
    client.infer("digits", [_files(_SEVEN, _THREE)], headers=dict(_FRESH))
    with pytest.raises(triton.InferenceServerException):
        client.infer("digits", [_files(b"no image")])

    def grown(name: str) -> int:
        return stats()["inference_stats"][name]["count"] - before["inference_stats"][name]["count"]

    wait_until(lambda: grown("fail") == 1 and grown("success") == 1)  # requests are counted after their responses
    after = stats("")
    assert after["inference_count"] - before["inference_count"] == grown("queue") == 2
    assert grown("compute_input") == grown("compute_infer") == grown("compute_output") == 2
    assert 1 <= after["execution_count"] - before["execution_count"] <= 2
    client.infer("digits", [_files(_SEVEN)])  # a hit
    wait_until(lambda: grown("cache_hit") > 0 and grown("cache_miss") > 0)
    after = stats("")
    for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit"):
        assert after["inference_stats"][name]["ns"] > before["inference_stats"][name]["ns"], name
    assert abs(after["last_inference"] / 1000 - time.time()) < 3600
    assert (
        sum(batch["batch_size"] * batch["compute_infer"]["count"] for batch in after["batch_stats"])
        == (after["inference_count"])
    )


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "JSON"])
@pytest.mark.parametrize("channels", ["last", "first"])
@pytest.mark.parametrize(("name", "datatype"), [("pixels", "UINT8"), ("pixel_values", "FP32")])
def test_pixels_get_the_answer_of_their_file(
    digits_server: RunningServer,
    client: triton.InferenceServerClient,
    name: str,
    datatype: str,
    channels: str,
    is_binary: bool,
) -> None:
    """Each datatype, layout and encoding gets the result of /predict for the file."""
    data: NDArray[Any] = _pixels(_SEVEN) if datatype == "UINT8" else _normalised(_pixels(_SEVEN))
    data = np.ascontiguousarray(data[None] if channels == "last" else np.moveaxis(data[None], -1, 1))
    tensor = _tensor(name, datatype, data, is_binary=is_binary)
    assert _same(_top(client.infer("digits", [tensor]))) == digits_server.top(_SEVEN, 10)


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "JSON"])
def test_files_get_their_own_answers(
    digits_server: RunningServer, client: triton.InferenceServerClient, is_binary: bool
) -> None:
    """Results are in the order of the files, for each output encoding; the request's id is returned."""
    names = ["labels", "probabilities", "indices"]
    outputs = [triton.InferRequestedOutput(name, binary_data=is_binary) for name in names]
    result = client.infer("digits", [_files(_SEVEN, _THREE)], "1", outputs=outputs, request_id="own")
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("own", "digits", "1")
    assert [output["name"] for output in answer["outputs"]] == names
    for number, upload in enumerate((_SEVEN, _THREE)):
        assert _same(_top(result, number)) == digits_server.top(upload, 10)
        assert [str(index) for index in result.as_numpy("indices")[number]] == [
            label for label, _ in _top(result, number)
        ]


def test_a_file_as_one_of_a_batch_of_strings(client: triton.InferenceServerClient) -> None:
    """The configuration implies a second dimension of 1, which is accepted."""
    tensor = _tensor("image", "BYTES", np.array([[_SEVEN], [_THREE]], object))
    assert client.infer("digits", [tensor]).as_numpy("labels")[:, 0].tolist() == [b"7", b"3"]


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "JSON"])
def test_a_classification(digits_server: RunningServer, client: triton.InferenceServerClient, is_binary: bool) -> None:
    """The output has the value, index and label of the requested number of classes."""
    output = triton.InferRequestedOutput("probabilities", binary_data=is_binary, class_count=2)
    found = client.infer("digits", [_files(_SEVEN)], outputs=[output]).as_numpy("probabilities")
    assert found.shape == (1, 2)
    texts = [text.decode() if isinstance(text, bytes) else text for text in found[0]]
    parts = [text.split(":") for text in texts]
    assert _same([(label, float(value)) for value, _, label in parts]) == digits_server.top(_SEVEN, 2)
    assert all(index == label for _, index, label in parts)


def test_a_classification_of_more_classes_than_there_are(client: triton.InferenceServerClient) -> None:
    """All classes are returned, as Triton does."""
    output = triton.InferRequestedOutput("probabilities", class_count=100)
    assert client.infer("digits", [_files(_SEVEN)], outputs=[output]).as_numpy("probabilities").shape == (1, 10)


def test_a_body_that_is_an_image(digits_server: RunningServer) -> None:
    """A raw binary request is accepted as in Triton; the headers have the source of the result."""
    response = httpx.post(
        digits_server.url + _INFER, content=_SEVEN, headers={_LENGTH: "0"} | _FRESH, timeout=60, **PLAIN_HTTP
    )
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-cache"] == "miss"
    length = int(response.headers[_LENGTH])
    result = triton.InferResult.from_response_body(response.content, header_length=length)
    assert _same(_top(result)) == digits_server.top(_SEVEN, 10)


_NAN = np.full((1, 3, 32, 32), np.nan, np.float32)
_FEW = np.zeros((1, 16, 16, 3), np.uint8)


def _many() -> triton.InferInput:
    return _tensor("pixels", "UINT8", np.zeros((33, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("inputs", "status", "message"),
    [
        pytest.param([_tensor("other", "BYTES", np.array([b"x"], object))], 400, "no input 'other'", id="input"),
        pytest.param([_tensor("image", "UINT8", _FEW)], 400, "BYTES, not 'UINT8'", id="datatype"),
        pytest.param([_tensor("pixels", "INT8", _FEW.astype(np.int8))], 400, "UINT8, not 'INT8'", id="unknown type"),
        pytest.param([_tensor("pixels", "UINT8", _FEW)], 400, "[1, 32, 32, 3] or [1, 3, 32, 32]", id="shape"),
        pytest.param([_tensor("image", "BYTES", np.array([[b"x", b"y"]], object))], 400, "[number of", id="2 a row"),
        pytest.param([_files(_SEVEN), _files(_SEVEN)], 400, "exactly one input", id="two inputs"),
        pytest.param([_files(_SEVEN, b"no image")], 415, "Element 1 of 'image'", id="not an image"),
        pytest.param([_files(_SEVEN[:200])], 400, "corrupt", id="corrupt"),
        pytest.param([_files(_SEVEN, b"")], 400, "Element 1 of 'image': The image is empty.", id="empty"),
        pytest.param([_many()], 400, "'pixels' must be 1 to 32", id="too many"),
        pytest.param([_tensor("pixel_values", "FP32", _NAN)], 400, "Element 0 of 'pixel_values'", id="not a number"),
    ],
)
def test_bad_inputs(
    client: triton.InferenceServerClient, inputs: list[triton.InferInput], status: int, message: str
) -> None:
    """The error says what is wrong, and with which image."""
    _fails(lambda: client.infer("digits", inputs), status, message)


def _fails(ask: Callable[[], object], status: int, message: str) -> None:
    with pytest.raises(triton.InferenceServerException) as raised:
        ask()
    assert raised.value.status() == str(status)
    assert message in raised.value.message()


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        pytest.param("other", {}, "no output 'other'", id="unknown"),
        pytest.param("labels", {"class_count": 2}, "Only 'probabilities'", id="output not classifiable"),
        pytest.param("probabilities", {"class_count": -1}, "must be a positive integer, not -1", id="too few classes"),
    ],
)
def test_bad_outputs(client: triton.InferenceServerClient, output: str, options: dict[str, int], message: str) -> None:
    """Unknown outputs are refused before the model runs."""
    wanted = triton.InferRequestedOutput(output, **options)
    _fails(lambda: client.infer("digits", [_files(_SEVEN)], outputs=[wanted]), 400, message)


@pytest.mark.parametrize(("name", "version"), [("other", ""), ("other", "1"), ("a/b", ""), ("digits", "2")])
def test_unknown_models_and_versions(client: triton.InferenceServerClient, name: str, version: str) -> None:
    """Other names and versions get an error on every path."""
    message = "only version is '1'." if name == "digits" else f"no model '{name}'"
    _fails(lambda: client.infer(name, [_files(_SEVEN)], version), 404, message)
    for ask in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        _fails(lambda ask=ask: ask(name, version), 404, message)  # type: ignore[misc]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: triton.InferenceServerClient, algorithm: str) -> None:
    """Bodies compressed by Triton's client are accepted."""
    answers = [
        client.infer("digits", [_files(_SEVEN)], request_compression_algorithm=how).as_numpy("labels").tolist()
        for how in (None, algorithm)
    ]
    assert answers[0] == answers[1]


def _body(binary: bytes, size: object, shape: object = (1,), **more: object) -> tuple[bytes, dict[str, str]]:
    """Return a body with one binary input, and its headers."""
    parameters = {} if size is None else {"binary_data_size": size}
    tensor = {"name": "image", "datatype": "BYTES", "shape": shape, "parameters": parameters} | more
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + binary, {_LENGTH: str(len(header))}


_PACKED = struct.pack("<I", len(_SEVEN)) + _SEVEN


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param(*_body(_PACKED[:-1], len(_PACKED)), id="cut off"),
        pytest.param(*_body(_PACKED[:-1], len(_PACKED) - 1), id="element cut off"),
        pytest.param(*_body(_PACKED + b"x", len(_PACKED)), id="more bytes than declared"),
        pytest.param(*_body(_PACKED + _PACKED, 2 * len(_PACKED)), id="more elements than the shape"),
        pytest.param(*_body(_PACKED, len(_PACKED), (2,)), id="fewer elements than the shape"),
        pytest.param(*_body(b"\xff\xff\xff\xffx", 5), id="length beyond the data"),
        pytest.param(*_body(b"\x01\x00", 2), id="truncated length"),
        pytest.param(*_body(_PACKED, -1), id="negative size"),
        pytest.param(*_body(_PACKED, str(len(_PACKED))), id="size not a number"),
        pytest.param(*_body(_PACKED, None), id="no size"),
        pytest.param(*_body(_PACKED, len(_PACKED), data=["x"]), id="two kinds of data"),
        pytest.param(*_body(_PACKED, len(_PACKED), (-1,)), id="negative shape"),
        pytest.param(*_body(_PACKED, len(_PACKED), 1), id="shape not a list"),
        pytest.param(_body(_PACKED, len(_PACKED))[0], {_LENGTH: "99999999"}, id="header beyond the body"),
        pytest.param(_body(_PACKED, len(_PACKED))[0], {_LENGTH: "-1"}, id="negative header length"),
        pytest.param(_body(_PACKED, len(_PACKED))[0], {_LENGTH: "20"}, id="truncated header"),
        pytest.param(_body(_PACKED, len(_PACKED))[0], {}, id="no header"),
        pytest.param(b"", {}, id="empty"),
        pytest.param(b"[]", {}, id="list"),
        pytest.param(b"[" * 100_000, {}, id="deeply nested"),
        pytest.param(b'{"inputs":[]}', {}, id="no input"),
        pytest.param(b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1]}]}', {}, id="no data"),
        pytest.param(
            b'{"id":1,"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":["eA=="]}]}', {}, id="id"
        ),
        pytest.param(
            b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":["eA=="],'
            b'"parameters":{"shared_memory_region":"x"}}]}',
            {},
            id="shared memory",
        ),
    ],
)
def test_inconsistent_requests_are_refused(digits_server: RunningServer, body: bytes, headers: dict[str, str]) -> None:
    """Wrong lengths, sizes and shapes, and malformed JSON, get an error in the protocol's form."""
    response = httpx.post(digits_server.url + _INFER, content=body, headers=headers, timeout=60, **PLAIN_HTTP)
    assert (response.status_code, response.json()["code"]) == (400, "bad_request"), response.text


def test_too_many_values_in_json(digits_server: RunningServer) -> None:
    """They are refused, since parsing them would block the process; the error suggests binary data."""
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [32, 32, 32, 3], "data": [0] * (2**18 + 1)}
    response = httpx.post(digits_server.url + _INFER, content=to_json({"inputs": [tensor]}), timeout=60, **PLAIN_HTTP)
    assert response.status_code == 400
    assert "as binary data" in response.json()["error"]


@pytest.mark.anyio
async def test_the_asynchronous_client(digits_server: RunningServer) -> None:
    """The asynchronous client gets the same results and errors as the blocking one."""
    async with triton_aio.InferenceServerClient(_address(digits_server)) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("digits", "1")
        assert (await client.get_server_metadata())["name"] == "vit-api"
        assert (await client.get_model_metadata("digits"))["name"] == "digits"
        assert (await client.get_model_config("digits"))["max_batch_size"] == 32
        assert (await client.get_inference_statistics("digits"))["model_stats"][0]["inference_count"] > 0
        pixels = _tensor("pixels", "UINT8", np.stack([_pixels(_SEVEN), _pixels(_THREE)]))
        result = await client.infer("digits", [pixels], request_id="own")
        assert result.get_response()["id"] == "own"
        for number, upload in enumerate((_SEVEN, _THREE)):
            assert _same(_top(result, number)) == digits_server.top(upload, 10)
        with pytest.raises(triton.InferenceServerException, match="There is no model 'other'"):
            await client.infer("other", [pixels])
        with pytest.raises(triton.InferenceServerException, match="corrupt"):
            await client.infer("digits", [_files(_SEVEN[:200])])
