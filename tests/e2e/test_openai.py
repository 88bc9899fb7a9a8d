"""`/v1/moderations` and `/v1/embeddings` with OpenAI's own client, against a real server."""

from __future__ import annotations

import base64
import http.client
import json
import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from tests.support.samples import edit_json, encode, make_checkpoint, photo, sharpen
from tests.support.server import PLAIN_HTTP, RunningServer, serve
from vit_api.labels.categories import CATEGORIES

pytestmark = pytest.mark.anyio

_KEY = "a-key-for-moderation"
_CLASSES = 50
_PHOTOS = [encode(photo(size)) for size in ((120, 90), (64, 64), (90, 120))]


def _data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def _inputs(*images: bytes) -> list[dict[str, object]]:
    return [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a multi-label model with more labels than an answer record has."""
    folder = sharpen(make_checkpoint(tmp_path_factory.mktemp("openai") / "multi", "vit", _CLASSES))
    edit_json(folder / "config.json", problem_type="multi_label_classification")
    return folder


@pytest.fixture(scope="module")
def all_scores(checkpoint: Path) -> dict[str, float]:
    """Return the scores of the first photo, as a server without thresholds gives them."""
    with serve(model=checkpoint, api_servers=1) as server:
        body = server.predict(_PHOTOS[0], "/predict?top_k=all").json()
    return {one["label"]: one["confidence"] for one in body["predictions"]}


@pytest.fixture(scope="module")
def strict_server(checkpoint: Path, all_scores: dict[str, float]) -> Iterator[RunningServer]:
    """Run a server where only a label beyond the 20 most probable ones is flagged for the first photo."""
    ranked = list(all_scores)
    assert len(ranked) == _CLASSES
    late, first = ranked[30], ranked[0]
    thresholds = {late: all_scores[late], "*": 1.0, **dict.fromkeys(ranked[:30], 1.0)}
    thresholds = {label: value for label, value in thresholds.items() if all_scores.get(label, 0) < 1 or label == late}
    categories = {late: ["violence", "violence/graphic"], first: "sexual"}
    with serve(
        model=checkpoint,
        api_keys=_KEY,
        thresholds=json.dumps({late: thresholds[late]}),
        categories=json.dumps(categories),
    ) as server:
        yield server


def _client(server: RunningServer, key: str = _KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def test_moderations(strict_server: RunningServer, all_scores: dict[str, float]) -> None:
    """Each image has a result; a label is flagged even if it is not among the 20 most probable ones."""
    ranked = list(all_scores)
    with _client(strict_server) as client:
        found = client.moderations.create(model="omni-moderation-latest", input=_inputs(*_PHOTOS))
    assert (found.model, len(found.results)) == ("multi", 3)
    result = found.results[0]
    assert result.flagged
    assert result.categories.violence
    assert result.categories.violence_graphic
    assert not result.categories.sexual
    assert not result.categories.harassment
    assert result.category_scores.violence == all_scores[ranked[30]]
    assert result.category_scores.sexual == all_scores[ranked[0]]
    assert result.category_applied_input_types.violence == ["image"]
    assert result.category_applied_input_types.harassment == []
    assert set(result.category_scores.to_dict()) == set(CATEGORIES)


async def test_moderations_asynchronously(strict_server: RunningServer) -> None:
    """The asynchronous client gets the same, as does a single `data:` URL."""
    async with openai.AsyncOpenAI(base_url=f"{strict_server.url}/v1", api_key=_KEY, max_retries=0) as client:
        found = await client.moderations.create(input=_inputs(_PHOTOS[0]))
        plain = await client.moderations.create(input=_data_url(_PHOTOS[0]))
    assert found.results == plain.results
    assert found.results[0].flagged


def test_predict_agrees(strict_server: RunningServer, all_scores: dict[str, float]) -> None:
    """The answer is flagged by a label that it does not show; the digest is that of /info."""
    headers = {"authorization": f"Bearer {_KEY}"}
    first = httpx.post(f"{strict_server.url}/predict?top_k=3", content=_PHOTOS[0], headers=headers, **PLAIN_HTTP).json()
    again = httpx.post(f"{strict_server.url}/predict?top_k=3", content=_PHOTOS[0], headers=headers, **PLAIN_HTTP).json()
    everything = httpx.post(
        f"{strict_server.url}/predict?top_k=all", content=_PHOTOS[0], headers=headers, **PLAIN_HTTP
    ).json()
    info = httpx.get(f"{strict_server.url}/info", headers=headers, **PLAIN_HTTP).json()
    assert [one["flagged"] for one in first["predictions"]] == [False] * 3
    assert first["flagged"] is again["flagged"] is True
    assert again["cached"]
    assert [one["label"] for one in everything["predictions"] if one["flagged"]] == [list(all_scores)[30]]
    assert first["thresholds_digest"] == info["thresholds_digest"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param("a text", "is text", id="text"),
        pytest.param(["a text"], r"'input\[0\]' is text", id="texts"),
        pytest.param([{"type": "text", "text": "a text"}], "is text", id="text object"),
        pytest.param(
            [*_inputs(_PHOTOS[0]), {"type": "text", "text": "a text"}], r"'input\[1\]' is text", id="image and text"
        ),
        pytest.param(["http://127.0.0.1:1/x.png"], "downloads no images", id="http"),
        pytest.param([{"type": "image_url", "image_url": {"url": "HTTPS://a.example/x"}}], "downloads no", id="https"),
        pytest.param([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], "is text", id="file"),
        pytest.param([{"type": "image_url", "image_url": {}}], "has no URL", id="no URL"),
        pytest.param([1, 2], "has no URL", id="tokens"),
        pytest.param([], "1 to 32 images", id="nothing"),
        pytest.param(_inputs(_PHOTOS[0]) * 33, "1 to 32 images", id="too many"),
        pytest.param(["data:image/png;base64,#"], "not valid base64", id="no base64"),
        pytest.param(None, "has no URL", id="null"),
    ],
)
@pytest.mark.parametrize("path", ["moderations", "embeddings"])
def test_refused_inputs(strict_server: RunningServer, path: str, value: object, reason: str) -> None:
    """What is no image is refused, in OpenAI's form."""
    with _client(strict_server) as client, pytest.raises(openai.BadRequestError, match=reason) as caught:
        client.post(f"/{path}", body={"input": value, "model": "x"}, cast_to=httpx.Response)
    error = caught.value
    assert (error.type, error.code) == ("invalid_request_error", "bad_request")
    assert error.request_id == error.response.headers["x-request-id"]
    assert error.response.json().keys() == {"error"}


def test_refused_bodies(strict_server: RunningServer) -> None:
    """So are bodies that are no JSON, and fields that are misspelt."""
    headers = {"authorization": f"Bearer {_KEY}", "content-type": "application/json"}
    for content, reason in (
        (b"{", "malformed"),
        (b"[1]", "not an object"),
        (b"", "malformed"),
        (b'{"inputs": "x"}', "Did you mean 'input'"),
        (b'{"input": "x", "input": "y"}', "more than once"),
    ):
        response = httpx.post(f"{strict_server.url}/v1/moderations", content=content, headers=headers, **PLAIN_HTTP)
        assert response.status_code == 400
        assert reason in response.json()["error"]["message"], content


def test_errors_of_every_kind_have_openais_form(strict_server: RunningServer) -> None:
    """A wrong key, an unsupported image and a body that is too large."""
    with _client(strict_server, "wrong-key") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.moderations.create(input=_inputs(_PHOTOS[0]))
    assert caught.value.code == "unauthorized"
    with _client(strict_server) as client:
        with pytest.raises(openai.APIStatusError) as unsupported:
            client.moderations.create(input=_inputs(_PHOTOS[0], b"no image"))
        assert (unsupported.value.status_code, unsupported.value.code) == (415, "unsupported_image")
        assert "input[1]" in unsupported.value.message
    connection = http.client.HTTPConnection("127.0.0.1", strict_server.port)
    headers = {"authorization": f"Bearer {_KEY}", "content-length": "999999999"}
    connection.request("POST", "/v1/moderations", headers=headers)
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "upload_too_large"
    connection.close()


def test_rate_limit(checkpoint: Path) -> None:
    """Each image counts; the error is the client's own RateLimitError with Retry-After."""
    with serve(model=checkpoint, rate_limit="3/hour") as server, _client(server) as client:
        client.embeddings.create(model="x", input=[_data_url(image) for image in _PHOTOS])
        with pytest.raises(openai.RateLimitError) as caught:
            client.moderations.create(input=_inputs(_PHOTOS[0]))
    assert caught.value.type == "rate_limit_error"
    assert int(caught.value.response.headers["retry-after"]) > 0


async def test_embeddings(strict_server: RunningServer, checkpoint: Path) -> None:
    """They are the class token of transformers' feature extraction, of length 1; base64 and numbers agree."""
    urls = [_data_url(image) for image in _PHOTOS]
    with _client(strict_server) as client:
        packed = client.embeddings.create(model="multi", input=urls)  # the client asks for base64
        plain = client.embeddings.create(model="multi", input=urls, encoding_format="float")
    async with openai.AsyncOpenAI(base_url=f"{strict_server.url}/v1", api_key=_KEY) as asynchronous:
        one = await asynchronous.embeddings.create(model="multi", input=urls[1], encoding_format="float")
    expected = [_expected(checkpoint, image) for image in _PHOTOS]
    assert [found.index for found in packed.data] == [0, 1, 2]
    for found, number, truth in zip(packed.data, plain.data, expected, strict=True):
        assert math.isclose(sum(value * value for value in found.embedding), 1, abs_tol=1e-5)
        np.testing.assert_allclose(found.embedding, number.embedding, atol=1e-8)
        assert float(np.dot(found.embedding, truth)) > 0.999
    np.testing.assert_allclose(one.data[0].embedding, plain.data[1].embedding, atol=1e-5)
    assert packed.usage.total_tokens == 0


def _expected(checkpoint: Path, image: bytes) -> np.ndarray:
    import io

    import transformers
    from PIL import Image

    extractor = transformers.pipeline("image-feature-extraction", model=str(checkpoint), device="cpu")
    token = np.array(extractor(Image.open(io.BytesIO(image)).convert("RGB")))[0, 0]
    return token / np.linalg.norm(token)


def test_embeddings_are_cached(strict_server: RunningServer) -> None:
    """The model runs once for an image, whichever format is requested."""
    image = encode(photo((77, 33)))
    before = _cache(strict_server)
    with _client(strict_server) as client:
        for encoding in ("float", "base64", "float"):
            client.embeddings.create(model="x", input=_data_url(image), encoding_format=encoding)
    after = _cache(strict_server)
    assert (after["misses"] - before["misses"], after["hits"] - before["hits"]) == (1, 2)


def _cache(server: RunningServer) -> dict[str, int]:
    return httpx.get(f"{server.url}/info", headers={"authorization": f"Bearer {_KEY}"}, **PLAIN_HTTP).json()["cache"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"dimensions": 3}, "32 dimensions", id="dimensions"),
        pytest.param({"encoding_format": "int8"}, "float, base64", id="format"),
    ],
)
def test_refused_parameters(strict_server: RunningServer, fields: dict[str, object], reason: str) -> None:
    """Dimensions and formats that the model does not have are refused; its own number is accepted."""
    body = {"input": _data_url(_PHOTOS[0]), "model": "x"}
    with _client(strict_server) as client:
        with pytest.raises(openai.BadRequestError, match=reason):
            client.post("/embeddings", body={**body, **fields}, cast_to=httpx.Response)
        assert client.embeddings.create(model="x", input=body["input"], dimensions=32).data
