"""Models of other families on a running server, through each API, with a name that the operator sets."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from tests.support.classifiers import CLASSES, make_classifier
from tests.support.samples import encode, photos
from tests.support.server import PLAIN_HTTP, TRANSFORMERS, RunningServer, serve
from tests.support.timm_files import make_plain_vit

_MAX_DIFFERENCE = 0.02
_NAME = "team/moderation"


def _pipeline_scores(folder: Path, upload: bytes) -> dict[str, float]:
    classify: Any = pipeline("image-classification", model=str(folder), device="cpu")
    with Image.open(io.BytesIO(upload)) as image:
        return {item["label"]: item["score"] for item in classify(image, top_k=CLASSES)}


def _post(server: RunningServer, path: str, content: dict[str, Any]) -> httpx.Response:
    return httpx.post(server.url + path, json=content, timeout=60, **PLAIN_HTTP)


def _infer(server: RunningServer, tensor: dict[str, Any]) -> dict[str, float]:
    """Return the probabilities by label from the Open Inference Protocol."""
    response = _post(server, f"/v2/models/{_NAME}/infer", {"inputs": [tensor]})
    assert response.status_code == 200, response.text
    assert response.json()["model_name"] == _NAME
    outputs = {output["name"]: output["data"] for output in response.json()["outputs"]}
    return dict(zip(outputs["labels"], outputs["probabilities"], strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "config"),
    [
        pytest.param("convnext", {"problem_type": "multi_label_classification"}, id="multi-label"),
        pytest.param("mobilevit", {}, id="channels in the order BGR"),
        pytest.param("vit", {"classes": 1}, id="one logit"),
    ],
)
def test_every_api_gives_the_answers_of_the_pipeline(family: str, config: dict[str, Any], tmp_path: Path) -> None:
    """The server's own route, Hugging Face's and the Open Inference Protocol's, from a file and from pixel values."""
    folder = make_classifier(tmp_path / "model", family, **config)
    upload = encode(photos()["coffee"])
    expected = pytest.approx(_pipeline_scores(folder, upload), abs=_MAX_DIFFERENCE)
    settings = {"exact_decode": True, "dtype": "float32", "api_servers": 1, "model_name": _NAME}
    with serve(folder, imports=TRANSFORMERS, **settings) as server:
        assert server.get("/info").json()["model"] == _NAME
        assert dict(server.top(upload, CLASSES)) == expected
        encoded = base64.b64encode(upload).decode()
        inputs = {"inputs": encoded, "parameters": {"top_k": CLASSES}}
        assert {item["label"]: item["score"] for item in _post(server, "/", inputs).json()} == expected
        assert _infer(server, {"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]}) == expected
        values = AutoImageProcessor.from_pretrained(folder)(photos()["coffee"], return_tensors="np")["pixel_values"]
        data = np.asarray(values, np.float32).ravel().tolist()
        tensor = {"name": "pixel_values", "datatype": "FP32", "shape": list(values.shape), "data": data}
        assert _infer(server, tensor) == expected


def test_a_plain_vit_of_timm_is_served(tmp_path: Path) -> None:
    """Its labels are those of its config.json, and its name that of its directory."""
    folder = make_plain_vit(tmp_path / "tiny")
    with serve(folder, api_servers=1) as server:
        top = server.top(encode(photos()["coffee"]), 12)
        assert {label for label, _ in top} == {f"class {index}" for index in range(12)}
        assert server.get("/v2/models/tiny").json()["name"] == "tiny"
