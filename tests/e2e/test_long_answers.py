"""Answers with more than an answer record holds, on real servers: their values, caches, and a worker that dies."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.samples import edit_json, encode, make_checkpoint, photo, sharpen
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, serve, serve_by
from vit_api.client import Client

_CLASSES = 70
_PHOTO = encode(photo((120, 90)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a softmax model with more classes than an answer record has."""
    return sharpen(make_checkpoint(tmp_path_factory.mktemp("long") / "many", "vit", _CLASSES))


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[RunningServer]:
    """Run a server with two HTTP processes."""
    with serve(model=checkpoint) as running:
        yield running


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> dict[str, float]:
    """Return all probabilities of the photo by transformers' pipeline."""
    import io

    import transformers
    from PIL import Image

    pipeline = transformers.pipeline("image-classification", model=str(checkpoint), device="cpu")
    found = pipeline(Image.open(io.BytesIO(_PHOTO)).convert("RGB"), top_k=_CLASSES)
    return {one["label"]: one["score"] for one in found}


def _scores(body: dict[str, Any]) -> dict[str, float]:
    return {one["label"]: one["confidence"] for one in body["predictions"]}


def test_all_classes(server: RunningServer, expected: dict[str, float]) -> None:
    """`all` gives every class as the pipeline does, most probable first; fewer are the start of it."""
    everything = _scores(server.predict(_PHOTO, "/predict?top_k=all").json())
    assert everything.keys() == expected.keys()
    assert max(abs(everything[label] - score) for label, score in expected.items()) < 0.02
    assert list(everything.values()) == sorted(everything.values(), reverse=True)
    assert abs(sum(everything.values()) - 1) < 1e-3
    for top_k in (1, 20, 21, _CLASSES):
        assert list(_scores(server.predict(_PHOTO, f"/predict?top_k={top_k}").json())) == list(everything)[:top_k]


def test_every_way_to_ask(server: RunningServer) -> None:
    """The query, a form, JSON, a batch and Hugging Face's parameters all take `all`."""
    text = base64.b64encode(_PHOTO).decode()
    answers = [
        server.predict(_PHOTO, "/predict?top_k=all").json()["predictions"],
        httpx.post(f"{server.url}/predict", files={"file": _PHOTO}, data={"top_k": "all"}, **PLAIN_HTTP).json()[
            "predictions"
        ],
        httpx.post(f"{server.url}/predict", json={"image": text, "top_k": "all"}, **PLAIN_HTTP).json()["predictions"],
        httpx.post(f"{server.url}/predict", json={"image": text, "top_k": _CLASSES}, **PLAIN_HTTP).json()[
            "predictions"
        ],
        httpx.post(f"{server.url}/predict/batch?top_k=all", files=[("files", _PHOTO)] * 2, **PLAIN_HTTP).json()[1][
            "predictions"
        ],
    ]
    assert all(answer == answers[0] for answer in answers)
    plain = httpx.post(f"{server.url}/", json={"inputs": text, "parameters": {"top_k": 1000}}, **PLAIN_HTTP).json()
    assert [one["label"] for one in plain] == [one["label"] for one in answers[0]]
    with Client(server.url) as client:
        assert len(client.classify(_PHOTO, top_k="all").predictions) == _CLASSES


@pytest.mark.parametrize("value", ["0", str(_CLASSES + 1), "ALL", "-1", "2.5"])
def test_refused_numbers(server: RunningServer, value: str) -> None:
    """What is neither `all` nor a possible number is refused."""
    response = server.predict(_PHOTO, f"/predict?top_k={value}")
    assert response.status_code == 400
    assert f"1 to {_CLASSES}, or 'all'" in response.json()["error"]


def test_threshold(server: RunningServer, expected: dict[str, float]) -> None:
    """Only classes at or above it are returned, however many they are; `top_k` limits them further."""
    everything = _scores(server.predict(_PHOTO, "/predict?top_k=all").json())
    low = list(everything.values())[30]
    body = server.predict(_PHOTO, f"/predict?threshold={low:.6f}").json()
    assert list(_scores(body)) == [label for label, score in everything.items() if score >= low]
    assert len(server.predict(_PHOTO, f"/predict?threshold={low:.6f}&top_k=2").json()["predictions"]) == 2
    form = httpx.post(
        f"{server.url}/predict", files={"file": _PHOTO}, data={"threshold": "0.999999"}, **PLAIN_HTTP
    ).json()
    assert all(score >= 0.999999 for score in _scores(form).values())
    with Client(server.url) as client:
        found = client.classify(_PHOTO, threshold=low)
    assert [one.label for one in found.predictions] == list(_scores(body))
    assert found.flagged is None


@pytest.mark.parametrize("value", ["2", "-0.1", "half", "nan", "1e3"])
def test_refused_thresholds(server: RunningServer, value: str) -> None:
    """What is no number from 0 to 1 is refused."""
    response = server.predict(_PHOTO, f"/predict?threshold={value}")
    assert (response.status_code, "0 to 1" in response.json()["error"]) == (400, True)


def test_long_and_short_answers_share_batches(server: RunningServer) -> None:
    """Concurrent requests for both get what they asked for, and the same numbers."""
    images = [encode(photo((40 + number, 50))) for number in range(24)]
    paths = ["/predict?top_k=all", "/predict?top_k=3", "/predict?top_k=21"]
    jobs = [(image, path) for image in images for path in paths]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda job: _scores(server.predict(*job).json()), jobs))
    for everything, three, more in zip(answers[::3], answers[1::3], answers[2::3], strict=True):
        assert [len(everything), len(three), len(more)] == [_CLASSES, 3, 21]
        assert all(abs(everything[label] - score) < 1e-4 for label, score in (three | more).items())


def test_other_processes_find_long_answers(server: RunningServer) -> None:
    """What one HTTP process computed, the other finds in shared memory."""
    image = encode(photo((61, 47)))
    sources = [server.predict(image, "/predict?top_k=all").headers["x-cache"] for _ in range(20)]  # new connections
    assert sources == ["miss", *["hit"] * 19]


def test_by_class(server: RunningServer) -> None:
    """The Open Inference Protocol gives probabilities and logits of all classes, by class, in JSON and as binary."""
    url = f"{server.url}/v2/models/many/infer"
    data = [base64.b64encode(_PHOTO).decode()] * 2
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [2], "data": data}]
    names = ["probabilities", "logits", "labels", "indices", "embedding"]
    body = {"inputs": inputs, "parameters": {"order": "class"}, "outputs": [{"name": name} for name in names]}
    outputs = {one["name"]: one for one in httpx.post(url, json=body, **PLAIN_HTTP).json()["outputs"]}
    assert [outputs[name]["shape"] for name in names[:4]] == [[2, _CLASSES]] * 4
    assert outputs["labels"]["data"][:_CLASSES] == [f"class {index}" for index in range(_CLASSES)]
    assert outputs["indices"]["data"][:_CLASSES] == list(range(_CLASSES))
    everything = _scores(server.predict(_PHOTO, "/predict?top_k=all").json())
    probabilities = outputs["probabilities"]["data"][:_CLASSES]
    assert max(abs(everything[f"class {index}"] - p) for index, p in enumerate(probabilities)) < 1e-4
    logits = np.array(outputs["logits"]["data"][:_CLASSES])
    softmax = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose(softmax, probabilities, atol=1e-5)
    embeddings = np.array(outputs["embedding"]["data"]).reshape(outputs["embedding"]["shape"])
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    body["outputs"] = [{"name": "logits", "parameters": {"binary_data": True}}]
    response = httpx.post(url, json=body, **PLAIN_HTTP)
    binary = response.content[int(response.headers["inference-header-content-length"]) :]
    np.testing.assert_allclose(np.frombuffer(binary, "<f4")[:_CLASSES], logits, atol=1e-4)


def test_counts_of_the_open_inference_protocol(server: RunningServer) -> None:
    """By default 20 classes are returned; `top_k` and a classification give more."""
    url = f"{server.url}/v2/models/many/infer"
    data = [base64.b64encode(_PHOTO).decode()]
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]}

    def shapes(**more: Any) -> list[list[int]]:
        return [one["shape"] for one in httpx.post(url, json=body | more, **PLAIN_HTTP).json()["outputs"]]

    assert shapes() == [[1, 20]] * 3
    assert shapes(parameters={"top_k": 3}) == [[1, 3]] * 3
    assert shapes(parameters={"top_k": 33}) == [[1, 33]] * 3
    assert shapes(parameters={"top_k": "all"}) == [[1, _CLASSES]] * 3
    classified = [{"name": "probabilities", "parameters": {"classification": 50}}]
    assert shapes(outputs=classified) == [[1, 50]]
    for parameters in ({"order": "random"}, {"top_k": 0}, {"top_k": 2.5}, {"order": "class", "top_k": 3}):
        assert httpx.post(url, json=body | {"parameters": parameters}, **PLAIN_HTTP).status_code == 400


def test_worker_dies_between_the_answer_and_its_record(checkpoint: Path, tmp_path: Path, server: RunningServer) -> None:
    """The image still has its pixels: the next worker computes the same answer, and the client notices nothing."""
    command = [sys.executable, "-m", "tests.support.dying_writer_server"]
    path = "/predict?top_k=all"
    with serve_by(command, tmp_path, {"PYTHONPATH": str(ROOT)}, model=checkpoint, host="127.0.0.1") as deadly:
        response = deadly.predict(_PHOTO, path)
    assert (tmp_path / "has_died").exists()
    assert response.status_code == 200
    found, wanted = _scores(response.json()), _scores(server.predict(_PHOTO, path).json())
    assert found.keys() == wanted.keys()
    assert max(abs(found[label] - wanted[label]) for label in wanted) < 1e-4


def test_flags_need_no_long_answers_of_a_softmax(checkpoint: Path) -> None:
    """No more than 20 classes can have more than 1/21, so thresholds above it cost nothing more; others do."""
    with serve(model=checkpoint, thresholds='{"*": 0.5}', api_servers=1) as common:
        body = common.predict(_PHOTO).json()
        assert body["flagged"] is any(one["flagged"] for one in body["predictions"])
    with serve(model=checkpoint, thresholds='{"*": 0.0}', api_servers=1) as all_flagged:
        body = all_flagged.predict(_PHOTO, "/predict?top_k=all").json()
    assert [one["flagged"] for one in body["predictions"]] == [True] * _CLASSES


def test_multi_label_threshold(tmp_path: Path) -> None:
    """Of a multi-label model any number of labels may be above a threshold, and none is cut."""
    folder = sharpen(make_checkpoint(tmp_path / "multi", "vit", _CLASSES))
    edit_json(folder / "config.json", problem_type="multi_label_classification")
    with serve(model=folder, api_servers=1) as multi:
        everything = _scores(multi.predict(_PHOTO, "/predict?top_k=all").json())
        above = _scores(multi.predict(_PHOTO, "/predict?threshold=0.5").json())
        assert multi.get("/info").json()["multi_label"]
    assert above == {label: score for label, score in everything.items() if score >= 0.5}
    assert len(above) > 20
