"""Real HTTP clients, each posting an image in the ways that its users do."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import aiohttp
import httpx
import huggingface_hub
import numpy as np
import pytest
import requests
import tritonclient.http

from tests.support.server import PLAIN_HTTP, ROOT, RunningServer

_FILE = ROOT / "examples" / "digit-7.png"
_SEVEN = _FILE.read_bytes()
_BASE64 = base64.b64encode(_SEVEN).decode()
_PROGRAMS = ROOT / "tests" / "support" / "programs"
_TIMEOUT_S = 120
_NODE_PATH = "/usr/share/nodejs"
"""Where Debian installs the packages of Node."""


def _needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(tools)}, which .ci/run installs")


def _run(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _check(answers: Sequence[Any], top_k: int = 2) -> None:
    """Compare the answers of /predict, or lists of them, with what the image shows."""
    assert answers
    for answer in answers:
        for one in answer if isinstance(answer, list) else [answer]:
            assert one["predictions"][0]["label"] == "7", one
            assert len(one["predictions"]) == top_k


@_needs("curl")
@pytest.mark.parametrize(
    ("path", "options"),
    [
        pytest.param("/predict?top_k=2", ["--data-binary", f"@{_FILE}"], id="--data-binary"),
        pytest.param("/predict?top_k=2", ["-T", str(_FILE), "-X", "POST"], id="-T"),
        pytest.param("/predict?top_k=2", ["-T", "-", "-X", "POST"], id="-T from a pipe"),
        pytest.param("/predict", ["-F", f"file=@{_FILE}", "-F", "top_k=2"], id="-F"),
        pytest.param("/predict", ["-F", f"picture=@{_FILE};type=image/png", "-F", "top_k=2"], id="-F of any field"),
        pytest.param("/predict?top_k=2", ["-F", f"file=@{_FILE};encoder=base64"], id="-F with an encoder"),
        pytest.param("/predict?top_k=2", ["-F", "file=@-"], id="-F from a pipe"),
        pytest.param("/predict", ["--json", json.dumps({"image": _BASE64, "top_k": 2})], id="--json"),
        pytest.param("/predict", ["-d", json.dumps({"image": _BASE64, "top_k": 2})], id="-d with JSON"),
        pytest.param("/predict", ["--data-urlencode", f"image={_BASE64}", "-d", "top_k=2"], id="--data-urlencode"),
        pytest.param(
            "/predict/batch?top_k=2", ["-F", f"files=@{_FILE}", "-F", f"files=@{_FILE}"], id="-F of several files"
        ),
    ],
)
def test_curl(digits_server: RunningServer, path: str, options: list[str]) -> None:
    """As scripts and READMEs use it."""
    with _FILE.open("rb") as file:
        command = ["curl", "--silent", "--show-error", "--fail-with-body", *options, digits_server.url + path]
        _check([json.loads(_run(*command, stdin=file))])


def test_requests(digits_server: RunningServer) -> None:
    """Raw bytes, a file object, forms and JSON."""
    url = digits_server.url + "/predict"
    with requests.Session() as session, contextlib.ExitStack() as stack:
        session.trust_env = False
        responses = [
            session.post(url, data=_SEVEN, params={"top_k": 2}, timeout=30),
            session.post(url, data=io.BytesIO(_SEVEN), params={"top_k": 2}, timeout=30),
            session.post(url, data=iter([_SEVEN[:100], _SEVEN[100:]]), params={"top_k": 2}, timeout=30),
            session.post(url, files={"file": stack.enter_context(_FILE.open("rb"))}, data={"top_k": 2}, timeout=30),
            session.post(url, files={"image": ("数字.png", _SEVEN, "image/png")}, data={"top_k": 2}, timeout=30),
            session.post(url, files={"file": (None, _SEVEN)}, data={"top_k": 2}, timeout=30),
            session.post(url, json={"image": _BASE64, "top_k": 2}, timeout=30),
            session.post(url, data={"image": _BASE64, "top_k": 2}, timeout=30),
            session.post(f"{url}/batch", files=[("files", _SEVEN)] * 2, data={"top_k": 2}, timeout=30),
        ]
    _check([response.json() for response in responses])


@pytest.mark.anyio
async def test_aiohttp(digits_server: RunningServer) -> None:
    """Raw bytes, a file, a stream, forms and JSON."""
    form = aiohttp.FormData({"top_k": "2"})
    form.add_field("file", _SEVEN, filename="digit-7.png", content_type="image/png")
    writer = aiohttp.MultipartWriter("form-data")
    writer.append(_SEVEN).set_content_disposition("form-data", name="file", filename="数字.png")

    async def stream() -> Any:
        yield _SEVEN[:100]
        yield _SEVEN[100:]

    bodies: list[dict[str, Any]] = [
        {"data": _SEVEN},
        {"data": io.BytesIO(_SEVEN)},
        {"data": stream()},
        {"data": _SEVEN, "compress": "gzip"},
        {"data": _SEVEN, "compress": "deflate", "expect100": True},
        {"data": form},
        {"data": writer},
        {"data": {"file": io.BytesIO(_SEVEN)}},
        {"json": {"image": _BASE64}},
    ]
    async with aiohttp.ClientSession() as session:
        for body in bodies:
            async with session.post(f"{digits_server.url}/predict?top_k=2", **body) as response:
                _check([await response.json()])


def test_httpx(digits_server: RunningServer) -> None:
    """Raw bytes, a stream, forms and JSON."""
    with httpx.Client(timeout=30, **PLAIN_HTTP) as client, _FILE.open("rb") as file:
        calls: list[dict[str, Any]] = [
            {"content": _SEVEN, "params": {"top_k": 2}},
            {"content": iter([_SEVEN[:100], _SEVEN[100:]]), "params": {"top_k": 2}},
            {"files": {"file": file}, "data": {"top_k": "2"}},
            {"files": {"upload": _SEVEN}, "data": {"top_k": "2"}},
            {"json": {"image": _BASE64, "top_k": 2}},
            {"data": {"image": _BASE64, "top_k": "2"}},
        ]
        _check([client.post(digits_server.url + "/predict", **call).json() for call in calls])


def _statuses_and_answers(printed: str) -> tuple[set[int], list[Any]]:
    found = json.loads(printed)
    return {status for status, _ in found}, [answer for _, answer in found]


@_needs("node")
def test_fetch_in_node(digits_server: RunningServer) -> None:
    """FormData, Blob, Buffer, a stream, JSON and URLSearchParams."""
    printed = _run("node", str(_PROGRAMS / "post_image.mjs"), digits_server.url, str(_FILE))
    statuses, answers = _statuses_and_answers(printed)
    assert (statuses, len(answers)) == ({200}, 8), answers
    _check(answers)


@_needs("node")
def test_axios(digits_server: RunningServer) -> None:
    """FormData, `postForm`, Buffer, streams and JSON."""
    environment = os.environ | {"NODE_PATH": _NODE_PATH, "NO_PROXY": "*"}
    if subprocess.run(["node", "-e", "require('axios')"], env=environment, capture_output=True, check=False).returncode:
        pytest.skip("needs axios, which .ci/run installs as node-axios")
    program = str(_PROGRAMS / "post_image_axios.cjs")
    statuses, answers = _statuses_and_answers(_run("node", program, digits_server.url, str(_FILE), env=environment))
    assert (statuses, len(answers)) == ({200}, 6), answers
    _check(answers)


@_needs("java", "javac")
def test_javas_http_client(digits_server: RunningServer) -> None:
    """Bytes, a file, a chunked stream, JSON with MIME's base64, a form; with and without an upgrade to HTTP/2."""
    printed = _run("java", str(_PROGRAMS / "PostImage.java"), digits_server.url, str(_FILE))
    statuses, answers = _statuses_and_answers(printed)
    assert (statuses, len(answers)) == ({200}, 12), answers
    _check(answers)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("is_binary", [True, False])
def test_tritonclient(digits_server: RunningServer, compression: str | None, is_binary: bool) -> None:
    """The bytes of an image as a tensor, in JSON or behind it, and compressed."""
    with tritonclient.http.InferenceServerClient(digits_server.url.removeprefix("http://")) as client:
        image = tritonclient.http.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([_SEVEN if is_binary else _BASE64.encode()], object), is_binary)
        result = client.infer("digits", [image], request_compression_algorithm=compression)
    tensors = [result.as_numpy(output["name"]) for output in result.get_response()["outputs"]]
    assert any(b"7" in tensor.ravel()[:1] for tensor in tensors if tensor.dtype == object)


def test_huggingface_hub(digits_server: RunningServer) -> None:
    """A path, bytes, and parameters."""
    client = huggingface_hub.InferenceClient(model=digits_server.url, api_key="none")
    answers = [
        client.image_classification(str(_FILE), top_k=2),
        client.image_classification(_SEVEN, top_k=2),
        client.image_classification(_SEVEN, top_k=2, function_to_apply="sigmoid"),
    ]
    assert [answer[0].label for answer in answers] == ["7"] * 3
    assert {len(answer) for answer in answers} == {2}
