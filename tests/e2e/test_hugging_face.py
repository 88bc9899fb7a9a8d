"""`POST /` with Hugging Face's own clients, and with requests written from the API's description."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient, InferenceTimeoutError
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from PIL import Image
from transformers import pipeline

from tests.support.samples import encode, make_checkpoint, photos, sharpen
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, paused, serve, worker_of
from vit_api.checkpoints.checkpoint import EMBEDDED

_FILE = ROOT / "examples" / "digit-7.png"
_SEVEN = _FILE.read_bytes()
_BASE64 = base64.b64encode(_SEVEN).decode()
# A warning of the asynchronous client about itself.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
_FUNCTIONS: list[Any] = ["softmax", "sigmoid", "none"]
_KEY, _BUSY_KEY = "the-key-of-most-tests", "the-key-that-is-used-up"
_RATE = 40


@pytest.fixture(scope="module")
def client(digits_server: RunningServer) -> InferenceClient:
    """Return Hugging Face's client of the embedded model."""
    return InferenceClient(model=digits_server.url)


@pytest.fixture(scope="module")
def exact_client() -> Iterator[InferenceClient]:
    """Return a client of the embedded model on a server that decodes and resizes exactly as the pipeline does."""
    with serve(exact_decode=1) as server:
        yield InferenceClient(model=server.url)


@pytest.fixture(scope="module")
def model_with_30_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with 30 classes, more than a response may have, and clear differences between them."""
    return sharpen(make_checkpoint(tmp_path_factory.mktemp("models") / "sharp", "vit", classes=30))


@pytest.fixture(scope="module")
def strict_server(model_with_30_classes: Path) -> Iterator[RunningServer]:
    """Run that model in float32, with an API key and limits on the number and size of images."""
    with serve(
        model_with_30_classes,
        exact_decode=True,
        dtype="float32",
        api_keys=f"{_KEY},{_BUSY_KEY}",
        rate_limit=f"{_RATE}/day",
        max_upload_mb=1,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def strict_client(strict_server: RunningServer) -> InferenceClient:
    """Return a client of the strict server, with its key."""
    return InferenceClient(model=strict_server.url, api_key=_KEY)


@pytest.fixture(scope="module")
def file_url() -> Iterator[str]:
    """Serve the examples on another port, and return the URL of one."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(_FILE.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{_FILE.name}"
        server.shutdown()
        thread.join()


def _pairs(elements: Any) -> list[tuple[str, float]]:
    return [(element["label"], element["score"]) for element in elements]


def _assert_same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    """Compare with a tolerance: images may run in batches of different sizes, which round differently."""
    assert [label for label, _ in found] == [label for label, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)


def _post(server: RunningServer, content: Any, **headers: str) -> httpx.Response:
    body = json.dumps(content).encode() if isinstance(content, dict) else content
    return httpx.post(server.url, content=body, headers=headers, timeout=60, **PLAIN_HTTP)


def test_a_path_bytes_and_a_url_have_the_same_answer(client: InferenceClient, file_url: str) -> None:
    """JSON with parameters and raw bytes without get the same result, by default five classes."""
    forms: list[Any] = [str(_FILE), _FILE, _SEVEN, file_url]
    answers = [_pairs(client.image_classification(form)) for form in forms]
    assert (answers[0][0][0], len(answers[0])) == ("7", 5)
    for answer in [*answers, *(_pairs(client.image_classification(form, top_k=5)) for form in forms)]:
        _assert_same(answer, answers[0])


def test_a_pillow_image_is_refused_by_the_client_itself(client: InferenceClient) -> None:
    """The client rejects it before it sends a request; docs/hugging-face.md has a workaround."""
    with Image.open(_FILE) as image, pytest.raises(ValueError, match="Expected binary inputs"):
        client.image_classification(image)


@pytest.mark.anyio
async def test_the_asynchronous_client(digits_server: RunningServer, client: InferenceClient) -> None:
    """Twenty concurrent requests get the response that a single one gets."""
    expected = _pairs(client.image_classification(_FILE, top_k=3, function_to_apply="none"))
    async with AsyncInferenceClient(model=digits_server.url) as asynchronous:
        work = [asynchronous.image_classification(_FILE, top_k=3, function_to_apply="none") for _ in range(20)]
        for response in await asyncio.gather(*work):
            _assert_same(_pairs(response), expected)


def test_it_agrees_with_predict(digits_server: RunningServer, client: InferenceClient) -> None:
    """The classes are those of `/predict`, which rounds probabilities."""
    answer = _pairs(client.image_classification(_FILE, top_k=10))
    assert [(label, round(score, 6)) for label, score in answer] == digits_server.top(_SEVEN, 10)


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (10, 10), (11, 10), (10**30, 10)])
def test_more_classes_than_there_are(client: InferenceClient, top_k: int, count: int) -> None:
    """All classes are returned, as transformers does."""
    assert len(client.image_classification(_FILE, top_k=top_k)) == count


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", _FUNCTIONS)
def test_functions_equal_the_pipelines(
    exact_client: InferenceClient, held_out: list[tuple[bytes, str]], function: Any
) -> None:
    """The scores of each function equal the pipeline's, down to the least likely class."""
    classify = pipeline("image-classification", model=str(EMBEDDED["digits"]), device="cpu")
    for upload, _ in held_out[:10]:
        with Image.open(io.BytesIO(upload)) as image:
            expected = classify(image, top_k=10, function_to_apply=function)
        answer = exact_client.image_classification(upload, top_k=10, function_to_apply=function)
        assert dict(_pairs(answer)) == pytest.approx(dict(_pairs(expected)), rel=1e-3, abs=1e-3 * (function == "none"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", [None, *_FUNCTIONS])
def test_all_of_30_classes(model_with_30_classes: Path, strict_client: InferenceClient, function: Any) -> None:
    """Scores equal the pipeline's, by default and for each function; all are returned that are asked for."""
    classify = pipeline("image-classification", model=str(model_with_30_classes), device="cpu")
    for image in photos().values():
        upload = encode(image, "PNG")
        with Image.open(io.BytesIO(upload)) as decoded:
            expected = classify(decoded, top_k=30, function_to_apply=function)
        answer = strict_client.image_classification(upload, top_k=30, function_to_apply=function)
        assert dict(_pairs(answer)) == pytest.approx(dict(_pairs(expected)), rel=5e-3, abs=5e-3 * (function == "none"))
        scores = [score for _, score in _pairs(answer)]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("content_type", ["", "image/png", "application/octet-stream", "application/json", "text/html"])
def test_raw_bytes_of_any_type(digits_server: RunningServer, content_type: str) -> None:
    """The format is detected from the content, whatever the Content-Type."""
    response = _post(digits_server, _SEVEN, **({"content-type": content_type} if content_type else {}))
    assert (response.status_code, response.json()[0]["label"]) == (200, "7")
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("extra", "count"),
    [
        pytest.param({}, 5, id="no parameters"),
        pytest.param({"parameters": None}, 5, id="null parameters"),
        pytest.param({"parameters": {}}, 5, id="empty parameters"),
        pytest.param({"parameters": {"top_k": None, "function_to_apply": None}}, 5, id="null values"),
        pytest.param(
            {"parameters": {"top_k": 2}, "options": {"wait_for_model": True}}, 2, id="an older client's options"
        ),
    ],
)
def test_json_without_a_content_type(digits_server: RunningServer, extra: dict[str, Any], count: int) -> None:
    """JSON is detected without a Content-Type, and missing parameters have their defaults."""
    response = _post(digits_server, {"inputs": _BASE64} | extra)
    assert (response.status_code, len(response.json())) == (200, count)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b'{"inputs": "', "malformed", id="truncated"),
        pytest.param({"image": _BASE64}, "no 'inputs', only 'image'", id="no inputs"),
        pytest.param({"inputs": [_BASE64]}, "'inputs' is an array", id="a list of inputs"),
        pytest.param({"inputs": "#"}, "'inputs' is not valid base64", id="not base64"),
        pytest.param({"inputs": "http://127.0.0.1/x.png"}, "doesn't download images", id="URL"),
        pytest.param({"inputs": _BASE64, "parameters": [1]}, "must be an object", id="parameters are a list"),
        pytest.param({"inputs": _BASE64, "parameters": {"topk": 1}}, "'topk'", id="misspelt parameter"),
        pytest.param(
            {"inputs": _BASE64, "parameters": {"top_k": 0}},
            "'top_k' must be a positive integer or 'all'.",
            id="zero classes",
        ),
        pytest.param(
            {"inputs": _BASE64, "parameters": {"top_k": True}},
            "'top_k' must be a positive integer or 'all'.",
            id="boolean top_k",
        ),
        pytest.param(
            {"inputs": _BASE64, "parameters": {"top_k": "five"}},
            "'top_k' must be a positive integer or 'all'.",
            id="top_k is a string",
        ),
        pytest.param(
            {"inputs": _BASE64, "parameters": {"function_to_apply": "tanh"}}, "softmax", id="unknown function"
        ),
        pytest.param({"inputs": _BASE64, "parameters": {"function_to_apply": []}}, "softmax", id="function is a list"),
    ],
)
def test_invalid_json(digits_server: RunningServer, content: Any, says: str) -> None:
    """The error says what is wrong with the request."""
    response = _post(digits_server, content, **{"content-type": "application/json"})
    body = response.json()
    assert (response.status_code, body["code"]) == (400, "bad_request")
    assert says in body["error"]


def test_it_shares_the_cache_with_predict(digits_server: RunningServer) -> None:
    """An upload is computed once for both paths, and both have the same headers."""
    upload = encode(Image.new("L", (9, 9), 77), "PNG")
    first, second = _post(digits_server, upload), digits_server.predict(upload)
    assert first.headers["x-cache"] == "miss"
    assert "x-inference-time-ms" in first.headers
    assert second.headers["x-cache"] == "hit"
    assert _post(digits_server, upload, **{"cache-control": "no-cache"}).headers["x-cache"] == "miss"


def test_requests_are_counted(digits_server: RunningServer) -> None:
    """Requests are counted by their path, like those of other paths."""
    line = 'inference_requests_total{endpoint="/",status="415"}'

    def count() -> float:
        return next(float(x.split()[-1]) for x in digits_server.get("/metrics").text.splitlines() if x.startswith(line))

    before = count()
    assert _post(digits_server, b"no image").status_code == 415
    assert count() == before + 1


def test_a_corrupt_image_as_the_client_shows_it(client: InferenceClient) -> None:
    """It is a BadRequestError with the server's message and request id."""
    with pytest.raises(BadRequestError, match=r"cut off|corrupt|truncated") as raised:
        client.image_classification(_SEVEN[:-30])
    assert raised.value.request_id
    assert raised.value.request_id in str(raised.value)


def test_an_unsupported_upload_as_the_client_shows_it(client: InferenceClient) -> None:
    """It is an HfHubHTTPError with the server's status and message."""
    with pytest.raises(HfHubHTTPError, match="The upload is a text") as raised:
        client.image_classification(b"text", top_k=1)
    assert raised.value.response.status_code == 415


@pytest.mark.parametrize("parameters", [{}, {"top_k": 1}])
def test_too_large_an_upload_as_the_client_shows_it(strict_client: InferenceClient, parameters: Any) -> None:
    """It is refused while it is sent, as bytes or base64, and the client shows the reason."""
    with pytest.raises(HfHubHTTPError, match="exceeds the maximum of 1 MiB") as raised:
        strict_client.image_classification(bytes(2 * 2**20), **parameters)
    assert raised.value.response.status_code == 413


@pytest.mark.parametrize(
    ("key", "says"),
    [
        pytest.param(None, "No API key was sent: send it as", id="no key"),
        pytest.param("a-wrong-key-of-this-test", r"Invalid API key\.", id="an invalid key"),
    ],
)
def test_no_key_as_the_client_shows_it(
    strict_server: RunningServer, key: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 401 says how to send a key, or that the key is invalid."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
    with pytest.raises(HfHubHTTPError, match=says) as raised:
        InferenceClient(model=strict_server.url, token=key).image_classification(_SEVEN)
    assert raised.value.response.status_code == 401


def test_a_rate_limit_as_the_client_shows_it(strict_server: RunningServer) -> None:
    """The 429 states the limit."""
    client = InferenceClient(model=strict_server.url, api_key=_BUSY_KEY)
    for _ in range(_RATE):
        assert client.image_classification(_SEVEN)
    with pytest.raises(HfHubHTTPError, match=f"limit of {_RATE} images") as raised:
        client.image_classification(_SEVEN)
    assert raised.value.response.status_code == 429
    assert int(raised.value.response.headers["retry-after"]) > 0


@pytest.mark.anyio
async def test_client_timeouts(strict_server: RunningServer) -> None:
    """Both clients raise InferenceTimeoutError after their own timeout."""
    upload = encode(Image.new("L", (9, 9), 99), "PNG")
    blocking = InferenceClient(model=strict_server.url, api_key=_KEY, timeout=0.5)
    with paused(worker_of(strict_server)):
        with pytest.raises(InferenceTimeoutError):
            blocking.image_classification(upload)
        async with AsyncInferenceClient(model=strict_server.url, api_key=_KEY, timeout=0.5) as asynchronous:
            with pytest.raises(InferenceTimeoutError):
                await asynchronous.image_classification(upload)
