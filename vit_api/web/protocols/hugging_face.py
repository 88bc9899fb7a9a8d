"""`POST /`, compatible with Hugging Face's image classification API; see docs/hugging-face.md.

Owns that API's field names: `inputs`, `parameters`, `label`, `score`. Knows nothing of how an image is classified.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vit_api.decoding.uploads import decode_base64
from vit_api.errors import BadRequest
from vit_api.ipc.records import DEFAULT_TOP_K, MAX_TOP_K, Prediction
from vit_api.web.core.classifier import ClassifierResult
from vit_api.web.openapi.descriptions import ANSWER, FAILURES, FILE
from vit_api.web.openapi.schemas import LabelScore
from vit_api.web.protocols.results import UploadClassifier, source_headers
from vit_api.web.requests import Request
from vit_api.web.responses import Response, to_json
from vit_api.web.routes import HotRoute, Operation
from vit_api.web.uploads import Uploads, load_object


def _sigmoids(prediction: Prediction) -> list[float]:
    return [_sigmoid(logit) for logit in prediction.logits]


def _sigmoid(logit: float) -> float:
    """Return 1 / (1 + exp(-logit)), without overflow for large negative logits."""
    small = math.exp(-abs(logit))
    return 1 / (1 + small) if logit >= 0 else small / (1 + small)


_SOFTMAX = "softmax"
_SCORES: Mapping[str, Callable[[Prediction], Sequence[float]]] = {
    _SOFTMAX: lambda prediction: prediction.probabilities,
    "sigmoid": _sigmoids,
    "none": lambda prediction: prediction.logits,
}
"""How scores are computed, by the name of `function_to_apply`; each function preserves the order of the classes."""

_EXAMPLE = '{"inputs": "<base64>", "parameters": {"top_k": 5}}'
_CONTENT = {
    "application/octet-stream": {"schema": FILE},
    "image/*": {"schema": FILE},
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "inputs": {"type": "string", "format": "byte", "description": "Base64 or a data: URL"},
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
                            "description": f"Function that converts the model's logits to scores; default {_SOFTMAX}",
                        },
                    },
                    "additionalProperties": False,
                },
            },
        }
    },
}


class _Parameters(NamedTuple):
    """The parameters of a request.

    Attributes:
        top_k: Maximum number of classes to return.
        function_to_apply: Function that computes the scores, a key of `_SCORES`. The default is that of
            transformers for single-label models, the only ones that this server runs.
    """

    top_k: int = DEFAULT_TOP_K
    function_to_apply: str = _SOFTMAX


class HuggingFaceRoutes:
    """The route that Hugging Face's clients post to.

    Args:
        classifier: Classifies the uploads.
        uploads: Finds the uploads in requests.
        labels: The class names, by index.
    """

    def __init__(self, classifier: UploadClassifier, uploads: Uploads, labels: Sequence[str]) -> None:
        self._classifier = classifier
        self._uploads = uploads
        self._labels = labels

    def routes(self) -> list[HotRoute]:
        """Return the route."""
        operation = Operation(
            "/",
            "classify_as_hugging_face_does",
            "Classify one image as Hugging Face's inference API does: the raw bytes, or base64 with parameters.",
            _CONTENT,
            responses=ANSWER | FAILURES,
            response_model=list[LabelScore],
        )
        return [HotRoute("POST", "/", "/", self.classify, self._uploads.limit_of_raw_or_json, operation)]

    async def classify(self, request: Request) -> Response:
        """Classify one image."""
        upload, parameters = await self._uploads.find_raw_or_json(request, _inputs_in_json)
        request.timeline.parsed_at = time.monotonic()
        result = await self._classifier.classify(upload, request.deadline, bypass_cache=request.bypasses_cache)
        return Response(200, self._body(result, parameters or _Parameters()), source_headers(result), (result,))

    def _body(self, result: ClassifierResult, parameters: _Parameters) -> bytes:
        """Return the response's JSON, which is serialised once for each cached prediction and parameters."""
        body = result.cached.rendered.get(parameters)
        if body is None:
            body = self._encode(result.prediction, parameters)
            result.cached.add_rendered(parameters, body)
        return body

    def _encode(self, prediction: Prediction, parameters: _Parameters) -> bytes:
        scores = _SCORES[parameters.function_to_apply](prediction)
        top = list(zip(prediction.indices, scores, strict=True))[: parameters.top_k]
        return to_json([{"label": self._labels[index], "score": score} for index, score in top])


def _inputs_in_json(body: bytes) -> tuple[bytes, _Parameters]:
    """Return the upload and the parameters in a JSON body.

    Other fields are ignored, such as the `options` of older clients.

    Raises:
        BadRequest: The body has no upload, or invalid parameters.
    """
    document = load_object(body, _EXAMPLE)
    inputs = document.get("inputs")
    if not isinstance(inputs, str):
        raise BadRequest(f"The JSON has no upload. Send {_EXAMPLE}.")
    if inputs.startswith(("http://", "https://")):
        raise BadRequest("'inputs' is a URL, and this server doesn't download images. Send the image itself as base64.")
    return decode_base64(inputs, "inputs"), _parameters_of(document.get("parameters"))


def _parameters_of(given: Any) -> _Parameters:
    """Return the parameters that a client sent; null means the default, as in Hugging Face's own clients.

    Raises:
        BadRequest: A parameter is invalid or unknown. Ignoring a misspelt one would silently apply its default.
    """
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise BadRequest("'parameters' must be an object, such as {\"top_k\": 5}.")
    unknown = sorted(given.keys() - set(_Parameters._fields))
    if unknown:
        raise BadRequest(f"Unknown parameter {unknown[0][:64]!r}: use {' and '.join(_Parameters._fields)}.")
    top_k = DEFAULT_TOP_K if given.get("top_k") is None else given["top_k"]
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise BadRequest("'top_k' must be a positive integer.")
    function = _SOFTMAX if given.get("function_to_apply") is None else given["function_to_apply"]
    if not isinstance(function, str) or function not in _SCORES:
        raise BadRequest(f"'function_to_apply' must be one of {', '.join(_SCORES)}.")
    return _Parameters(min(top_k, MAX_TOP_K), function)
