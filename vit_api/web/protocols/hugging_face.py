"""`POST /`, compatible with Hugging Face's image classification API; see docs/hugging-face.md.

Owns that API's field names: `inputs`, `parameters`, `label`, `score`. Knows nothing of how an image is classified.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from vit_api.errors import BadRequest
from vit_api.ipc.records import ALL_CLASSES, DEFAULT_TOP_K, MAX_TOP_K, Prediction
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult
from vit_api.web.openapi.descriptions import ANSWER, FAILURES, FILE, URGENCY
from vit_api.web.openapi.schemas import LabelScore
from vit_api.web.parameters import ALL, Fields, collect, parse_integer, threshold_of
from vit_api.web.protocols.results import UploadClassifier, classify_one, finder_of, refuse_other_model, source_headers
from vit_api.web.repeats import Hit, HitFinder
from vit_api.web.requests import Headers, Request
from vit_api.web.responses import Response, to_json
from vit_api.web.routes import HotRoute, Operation
from vit_api.web.uploads import Uploads

_SOFTMAX, _SIGMOID = "softmax", "sigmoid"
_SCORES: Mapping[str, Callable[[Prediction], Sequence[float]]] = {
    _SOFTMAX: lambda prediction: prediction.probabilities,
    _SIGMOID: lambda prediction: prediction.sigmoids,
    "none": lambda prediction: prediction.logits,
}
"""How scores are computed, by the name of `function_to_apply`; each function preserves the order of the classes."""

CONTENT = {
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
                            "anyOf": [{"type": ["integer", "null"], "minimum": 1}, {"enum": [ALL]}],
                            "description": f"Number of classes to return, or `{ALL}`; default {DEFAULT_TOP_K}",
                        },
                        "threshold": {
                            "type": ["number", "null"],
                            "minimum": 0,
                            "maximum": 1,
                            "description": "Minimum score of a class; without `top_k`, all such classes are returned",
                        },
                        "function_to_apply": {
                            "enum": [*_SCORES, None],
                            "description": "Function that converts the model's logits to scores; "
                            f"default {_SOFTMAX}, for multi-label models {_SIGMOID}",
                        },
                    },
                    "additionalProperties": False,
                },
            },
        }
    },
}


class _PipelineParameters(NamedTuple):
    """The parameters of a request.

    Attributes:
        top_k: Maximum number of classes to return; None for all.
        function_to_apply: Function that computes the scores, a key of `_SCORES`; None for the model's own.
        threshold: Minimum score of a class; None for any.
    """

    top_k: int | None = DEFAULT_TOP_K
    function_to_apply: str | None = None
    threshold: float | None = None

    @property
    def parts(self) -> int:
        """What the answer must have besides the most probable classes."""
        return 0 if self.top_k is not None and self.top_k <= MAX_TOP_K else ALL_CLASSES


_DEFAULTS = _PipelineParameters()
_TOTAL_TIME = b"x-total-time"
_MAX_TOP_K_DIGITS = 9


class HuggingFaceRoutes:
    """The route that Hugging Face's clients post to.

    Args:
        classifier: Classifies the uploads.
        uploads: Finds the uploads in requests.
        labels: The class names, by index.
        has_sigmoid: Whether the model's probabilities are sigmoids; see `Checkpoint`.
        device: The device that the model runs on, for `x-compute-type`.
        own: The `model` and `version` of this model; empty if the server has one only.
    """

    def __init__(
        self,
        classifier: UploadClassifier,
        uploads: Uploads,
        labels: Sequence[str],
        *,
        has_sigmoid: bool,
        device: str,
        own: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._own = own
        self._function = _SIGMOID if has_sigmoid else _SOFTMAX
        self._classifier = classifier
        self._uploads = uploads
        self._labels = labels
        self._compute_type = b"gpu" if device.startswith("cuda") else b"cpu"

    def routes(self) -> list[HotRoute]:
        """Return the route."""
        operation = Operation(
            "/",
            "classify_as_hugging_face_does",
            "Classify one image as Hugging Face's inference API does: the raw bytes, or base64 with parameters.",
            CONTENT,
            URGENCY,
            responses=ANSWER | FAILURES,
            response_model=list[LabelScore],
        )
        limit = self._uploads.limit_of_one
        return [HotRoute("POST", "/", "/", self.classify, limit, operation, self.find, self.repeat)]

    def find(self, request: Request, body: bytes) -> Response | None:
        """Return the response for an upload that is sent as the body, or alone in a form, if it is cached."""
        if request.query or request.bypasses_cache:
            return None
        upload = self._uploads.plain(request, body)
        parsed_at = time.monotonic()
        result = None if upload is None else self._classifier.find(upload)
        if result is None:
            return None
        request.timeline.parsed_at = parsed_at
        return self._respond(request, result, _DEFAULTS)

    def repeat(self, request: Request, response: Response) -> HitFinder | None:
        """Return what finds responses to requests like one that `find` has answered, in less than a millisecond."""
        if (_TOTAL_TIME, b"0") not in response.headers:
            return None

        def render(cached: CachedPrediction, upload: bytes) -> Hit:
            rendered = cached.rendered.get(_DEFAULTS) or self._render(cached, cached.prediction, _DEFAULTS)
            return Hit(cached, upload, rendered, None)

        return finder_of(self._classifier, self._uploads, request, render)

    async def classify(self, request: Request) -> Response:
        """Classify one image."""
        upload, fields = await self._uploads.find_one(request, "inputs")
        refuse_other_model(self._own, fields)
        parameters = _parameters_of(request.query, fields) if fields or request.query else _DEFAULTS
        request.timeline.parsed_at = time.monotonic()
        parts = parameters.parts if len(self._labels) > MAX_TOP_K else 0
        result = await classify_one(self._classifier, request, upload, parts)
        return self._respond(request, result, parameters)

    def _respond(self, request: Request, result: ClassifierResult, parameters: _PipelineParameters) -> Response:
        headers = (*source_headers(result), *self._compute_headers(result, request.elapsed_ms))
        return Response(200, self._body(result, parameters), headers, (result,))

    def _compute_headers(self, result: ClassifierResult, elapsed_ms: float) -> Headers:
        """Return the headers of Hugging Face's own servers (text-embeddings-inference), in integer milliseconds."""
        total = b"%d" % elapsed_ms
        answer = result.own_answer
        kind = b"cache" if answer is None else self._compute_type
        headers = ((b"x-compute-type", kind), (b"x-compute-time", total), (_TOTAL_TIME, total))
        if answer is None:
            return headers
        return (
            *headers,
            (b"x-queue-time", b"%d" % (answer.queue_s * 1000)),
            (b"x-inference-time", b"%d" % (answer.inference_s * 1000)),
        )

    def _body(self, result: ClassifierResult, parameters: _PipelineParameters) -> bytes:
        """Return the response's JSON, which is serialised once for each cached prediction and parameters."""
        body = result.cached.rendered.get(parameters)
        return self._render(result.cached, result.prediction, parameters) if body is None else body

    def _render(self, cached: CachedPrediction, prediction: Prediction, parameters: _PipelineParameters) -> bytes:
        body = self._encode(prediction, parameters)
        cached.add_rendered(parameters, body)
        return body

    def _encode(self, prediction: Prediction, parameters: _PipelineParameters) -> bytes:
        scores = _SCORES[parameters.function_to_apply or self._function](prediction)
        top = list(zip(prediction.indices, scores, strict=True))[: parameters.top_k]
        if parameters.threshold is not None:
            top = [(index, score) for index, score in top if score >= parameters.threshold]
        return to_json([{"label": self._labels[index], "score": score} for index, score in top])


def _parameters_of(query: bytes, fields: Fields) -> _PipelineParameters:
    """Return the parameters of a request: in the `parameters` of the JSON, beside `inputs`, in the query, or in a form.

    Null means the default, as in Hugging Face's own clients. Other fields of the JSON are ignored, such as the
    `options` of older clients.

    Raises:
        BadRequest: A parameter is invalid or unknown. Ignoring a misspelt one would silently apply its default.
    """
    nested = next((value for name, value in fields if name == "parameters"), None)
    if nested is not None and not isinstance(nested, dict):
        raise BadRequest("'parameters' must be an object, such as {\"top_k\": 5}.")
    nested = nested or {}
    unknown = sorted(nested.keys() - set(_PipelineParameters._fields))
    if unknown:
        raise BadRequest(f"Unknown parameter {unknown[0][:64]!r}: use {', '.join(_PipelineParameters._fields)}.")
    beside = [(name, value) for name, value in fields if name != "parameters"]
    sent = [(name, value) for name, value in (*nested.items(), *beside) if value is not None]
    values = collect((*_PipelineParameters._fields, "frames"), query, sent)
    if "frames" in values:  # ignored, it would seem that all of them were classified
        raise BadRequest("This API has no 'frames'. Send animations to /predict.")
    function = values.get("function_to_apply")
    if function is not None and (not isinstance(function, str) or function not in _SCORES):
        raise BadRequest(f"'function_to_apply' must be one of {', '.join(_SCORES)}.")
    threshold = threshold_of(values["threshold"]) if "threshold" in values else None
    top_k = _top_k_of(values.get("top_k", DEFAULT_TOP_K if threshold is None else ALL))
    return _PipelineParameters(top_k, function, threshold)


def _top_k_of(value: Any) -> int | None:
    """Return how many classes to return: as in transformers, all that there are if more are requested."""
    if value == ALL:
        return None
    top_k = parse_integer(value, max_digits=_MAX_TOP_K_DIGITS)
    if top_k is None or top_k < 1:
        raise BadRequest(f"'top_k' must be a positive integer or '{ALL}'.")
    return top_k
