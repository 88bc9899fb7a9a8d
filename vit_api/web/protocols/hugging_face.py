"""`POST /` as Hugging Face's clients ask for image classification; see docs/hugging-face.md.

Owns that API's words: `inputs`, `parameters`, `label`, `score`. Knows nothing of how an image is classified.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import APIRouter

from vit_api.decoding.uploads import decode_base64
from vit_api.errors import BadRequest
from vit_api.ipc.records import DEFAULT_TOP_K, MAX_TOP_K, Prediction
from vit_api.web.core.classifier import ClassifierResult
from vit_api.web.entry import HotRoute
from vit_api.web.openapi.descriptions import ANSWER, FAILURES, FILE, takes
from vit_api.web.openapi.schemas import LabelScore
from vit_api.web.protocols.request_classifier import RequestClassifier, source_headers
from vit_api.web.requests import Request, Response, to_json
from vit_api.web.uploads import Uploads, load_object


def _sigmoids(prediction: Prediction) -> list[float]:
    return [_sigmoid(logit) for logit in prediction.logits]


def _sigmoid(logit: float) -> float:
    """Return 1 / (1 + exp(-logit)), without the overflow that this has far below 0."""
    small = math.exp(-abs(logit))
    return 1 / (1 + small) if logit >= 0 else small / (1 + small)


_SOFTMAX = "softmax"
_SCORES: Mapping[str, Callable[[Prediction], Sequence[float]]] = {
    _SOFTMAX: lambda prediction: prediction.probabilities,
    "sigmoid": _sigmoids,
    "none": lambda prediction: prediction.logits,
}
"""What becomes of logits, by the API's name of it; each keeps their order."""

_EXAMPLE = '{"inputs": "<base64>", "parameters": {"top_k": 5}}'
_CONTENT = {
    "application/octet-stream": {"schema": FILE},
    "image/*": {"schema": FILE},
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "inputs": {"type": "string", "format": "byte", "description": "Base64, or a data: URL"},
                "parameters": {
                    "type": ["object", "null"],
                    "properties": {
                        "top_k": {
                            "type": ["integer", "null"],
                            "minimum": 1,
                            "description": f"Number of classes to return; default {DEFAULT_TOP_K}, maximum {MAX_TOP_K}",
                        },
                        "function_to_apply": {
                            "enum": [*_SCORES, None],
                            "description": f"What makes scores of the model's outputs; {_SOFTMAX} by default",
                        },
                    },
                    "additionalProperties": False,
                },
            },
        }
    },
}


class _Parameters(NamedTuple):
    """What a client wants to know.

    Attributes:
        top_k: How many classes; more than there are means all.
        function_to_apply: What makes the scores, one of `_SCORES`. transformers' default for a model
            that gives an image one label, as all do that this server takes, is the softmax.
    """

    top_k: int = DEFAULT_TOP_K
    function_to_apply: str = _SOFTMAX


class HuggingFaceRoutes:
    """The handler of the path that Hugging Face's clients post to.

    Args:
        requests: Classifies what they bring.
        uploads: Finds the images in requests.
        labels: The classes' names, by index.
    """

    def __init__(self, requests: RequestClassifier, uploads: Uploads, labels: Sequence[str]) -> None:
        self._requests = requests
        self._uploads = uploads
        self._labels = labels

    def hot_routes(self) -> list[HotRoute]:
        """Return the path that classifies."""
        return [HotRoute("POST", "/", "/", self.classify)]

    def router(self) -> APIRouter:
        """Return a route that describes the path. `Entry` answers its requests before they get here."""
        router = APIRouter(tags=["classification"])

        @router.post("/", response_model=list[LabelScore], responses=ANSWER | FAILURES, openapi_extra=takes(_CONTENT))
        async def classify_as_hugging_face_does() -> None:
            """Classify one image as Hugging Face's inference API does: the raw bytes, or base64 with parameters."""

        return router

    async def classify(self, request: Request) -> Response:
        """Classify one image."""
        reading = self._uploads.read_raw_or_json(request, _inputs_in_json)
        upload, parameters = await self._requests.read(request, reading)
        result = await self._requests.classify(request, upload)
        return Response(200, self._body(result, parameters or _Parameters()), source_headers(result), (result,))

    def _body(self, result: ClassifierResult, parameters: _Parameters) -> bytes:
        """Return the answer's JSON, which is worded once."""
        body = result.known.rendered.get(parameters)
        if body is None:
            body = self._worded(result.prediction, parameters)
            result.known.add_rendered(parameters, body)
        return body

    def _worded(self, prediction: Prediction, parameters: _Parameters) -> bytes:
        scores = _SCORES[parameters.function_to_apply](prediction)
        top = list(zip(prediction.indices, scores, strict=True))[: parameters.top_k]
        return to_json([{"label": self._labels[index], "score": score} for index, score in top])


def _inputs_in_json(body: bytes) -> tuple[bytes, _Parameters]:
    """Return the upload and the parameters in a JSON body.

    What else is beside the two, such as the `options` of older clients, doesn't matter.

    Raises:
        BadRequest: It has no upload, or parameters that mean nothing here.
    """
    document = load_object(body, _EXAMPLE)
    inputs = document.get("inputs")
    if not isinstance(inputs, str):
        raise BadRequest(f"the JSON has no upload; send {_EXAMPLE}")
    if inputs.startswith(("http://", "https://")):
        raise BadRequest("this server fetches nothing; send the image itself as base64 in 'inputs'")
    return decode_base64(inputs, "inputs"), _parameters_of(document.get("parameters"))


def _parameters_of(given: Any) -> _Parameters:
    """Return the parameters that a client sent; a null is as good as none, as it is in Hugging Face's own clients.

    Raises:
        BadRequest: One is unknown, so that a misspelt one is not taken for its default, or has no sense.
    """
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise BadRequest("'parameters' must be an object, such as {\"top_k\": 5}")
    unknown = sorted(given.keys() - set(_Parameters._fields))
    if unknown:
        raise BadRequest(f"unknown parameter {unknown[0][:64]!r}; there are {' and '.join(_Parameters._fields)}")
    top_k = DEFAULT_TOP_K if given.get("top_k") is None else given["top_k"]
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise BadRequest("top_k must be a whole number from 1 on")
    function = _SOFTMAX if given.get("function_to_apply") is None else given["function_to_apply"]
    if not isinstance(function, str) or function not in _SCORES:
        raise BadRequest(f"function_to_apply must be one of {', '.join(_SCORES)}")
    return _Parameters(min(top_k, MAX_TOP_K), function)
