"""`POST /predict` and `POST /predict/batch`: from a request to the JSON of its response.

Knows nothing of how an image is classified.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from vit_api.errors import ViTError
from vit_api.ipc.records import ALL_CLASSES, DEFAULT_TOP_K, MAX_TOP_K, Prediction
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source
from vit_api.web.openapi.descriptions import ANSWER, BATCH_ANSWER, FAILURES, FILE, URGENCY
from vit_api.web.openapi.schemas import ErrorResponse, PredictResponse
from vit_api.web.parameters import ALL, Fields, collect, integer_of, threshold_of, top_k_of
from vit_api.web.protocols.frames import (
    MAX_FRAMES,
    ClassifiedFrames,
    Encoder,
    FramesClassifier,
    classify_frames,
    outcomes_of,
)
from vit_api.web.protocols.results import (
    HIT_HEADERS,
    UploadClassifier,
    batch_headers,
    classify_one,
    classify_several,
    finder_of,
    refuse_other_model,
    source_headers,
)
from vit_api.web.repeats import Hit, HitFinder
from vit_api.web.requests import Request
from vit_api.web.responses import Response, error_body, to_json
from vit_api.web.routes import HotRoute, Operation
from vit_api.web.uploads import Uploads

T = TypeVar("T")

_HIT = b',"cached":true,"processing_time_ms":'

MAX_IMAGES_PER_REQUEST = 32

_ONE_UPLOAD = {
    "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": FILE}}},
    "application/octet-stream": {"schema": FILE},
    "image/*": {"schema": FILE},
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {"image": {"type": "string", "format": "byte", "description": "Base64 or a data: URL"}},
        }
    },
}
_MANY_UPLOADS = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["files"],
            "properties": {
                "files": {"type": "array", "items": FILE, "minItems": 1, "maxItems": MAX_IMAGES_PER_REQUEST}
            },
        }
    }
}

_THRESHOLD = {
    "name": "threshold",
    "in": "query",
    "description": "Minimum probability of a class to return; without `top_k`, all such classes are returned",
    "schema": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
}

_FRAMES = {
    "name": "frames",
    "in": "query",
    "description": "Maximum number of frames of an animation, or pages of a document, to classify; see docs/images.md",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_FRAMES, "default": 1},
}


class _Parameters(NamedTuple):
    """The parameters of a request.

    Attributes:
        top_k: Maximum number of classes; None for all.
        frames: Maximum number of frames.
        threshold: Minimum probability of a class.
        parts: What the answer must have besides the most probable classes, see `records.ALL_CLASSES`.
    """

    top_k: int | None = DEFAULT_TOP_K
    frames: int = 1
    threshold: float = 0.0
    parts: int = 0


_PLAIN_QUERIES = {b"": _Parameters()} | {b"top_k=%d" % k: _Parameters(k) for k in range(1, MAX_TOP_K + 1)}


_NAMES = ("top_k", "frames", "threshold")


class PredictRoutes:
    """The handlers of this server's own API.

    Args:
        classifier: Classifies the uploads.
        encoder: Renders the predictions.
        uploads: Finds the uploads in requests.
        frames: Classifies the frames of animations.
        model_name: The name in each response.
        classes: The model's number of classes.
        is_complete: Returns whether a short answer has every class with at least this probability.
        version: The version in each response; None if the server has one model only.
    """

    def __init__(
        self,
        classifier: UploadClassifier,
        encoder: Encoder,
        uploads: Uploads,
        *,
        frames: FramesClassifier,
        model_name: str,
        classes: int = MAX_TOP_K,
        is_complete: Callable[[float], bool] = lambda _: True,
        version: str | None = None,
    ) -> None:
        self._max_top_k = max(MAX_TOP_K, classes)
        self._is_complete = is_complete
        self._classifier = classifier
        self._frames = frames
        self._encoder = encoder
        self._uploads = uploads
        self._own = {} if version is None else {"model": model_name, "version": version}
        names = to_json({"model": model_name} | self._own)
        self._end = b"," + names[1:]

    def routes(self) -> list[HotRoute]:
        """Return the routes."""
        parameters = [_describe_top_k(self._max_top_k), _THRESHOLD, _FRAMES, *URGENCY]
        one = Operation(
            "/predict",
            "classify_an_image",
            "Classify one image: the form field `file`, the raw bytes as the body, or base64 in JSON.",
            _ONE_UPLOAD,
            parameters,
            ANSWER | FAILURES,
            PredictResponse,
        )
        several = Operation(
            "/predict/batch",
            "classify_several_images",
            "Classify 1 to 32 images. Results are in the order of the images; a failed image has an error object.",
            _MANY_UPLOADS,
            parameters,
            BATCH_ANSWER | FAILURES,
            list[PredictResponse | ErrorResponse],
        )
        uploads = self._uploads
        return [
            HotRoute("POST", "/predict", "/predict", self.predict, uploads.limit_of_one, one, self.find, self.repeat),
            HotRoute("POST", "/predict/batch", "/predict/batch", self.predict_batch, uploads.limit_of_several, several),
        ]

    def find(self, request: Request, body: bytes) -> Response | None:
        """Return the response for an upload that is sent as the body, or alone in a form, if it is cached."""
        parameters = _PLAIN_QUERIES.get(request.query)
        if parameters is None or request.bypasses_cache:
            return None
        upload = self._uploads.plain(request, body)
        parsed_at = time.monotonic()
        result = None if upload is None else self._classifier.find(upload)
        if result is None:
            return None
        request.timeline.parsed_at = parsed_at
        return Response(200, self._body(request, result, parameters), HIT_HEADERS, (result,))

    def repeat(self, request: Request, _: Response) -> HitFinder | None:
        """Return what finds responses to requests like one that `find` has answered."""
        top_k, end = _PLAIN_QUERIES[request.query].top_k, self._end

        def render(cached: CachedPrediction, upload: bytes) -> Hit:
            start = cached.rendered.get(top_k) or self._render(cached, cached.prediction, top_k)
            return Hit(cached, upload, start + _HIT, end)

        return finder_of(self._classifier, self._uploads, request, render)

    async def predict(self, request: Request) -> Response:
        """Classify one image."""
        upload, fields = await self._uploads.find_one(request)
        parameters = self._parameters_of(request, fields)
        request.timeline.parsed_at = time.monotonic()
        if parameters.frames > 1:
            return await self._predict_frames(request, upload, parameters)
        result = await classify_one(self._classifier, request, upload, parameters.parts)
        return Response(200, self._body(request, result, parameters), source_headers(result), (result,))

    async def predict_batch(self, request: Request) -> Response:
        """Classify several images; one that fails has an error object in its position."""
        uploads, fields = await self._uploads.find_several(request)
        parameters = self._parameters_of(request, fields)
        request.timeline.parsed_at = time.monotonic()
        if parameters.frames > 1:
            return await self._predict_batch_frames(request, uploads, parameters)
        results = await classify_several(self._classifier, request, uploads, parameters.parts)
        body = _batch_body(request, results, lambda result: self._body(request, result, parameters))
        return Response(200, body, batch_headers(results), results)

    async def _predict_frames(self, request: Request, upload: bytes, parameters: _Parameters) -> Response:
        (result,) = await classify_frames(
            self._classifier, self._frames, request, [upload], parameters.frames, parts=parameters.parts
        )
        if isinstance(result, ViTError):
            raise result
        body = self._frames_body(request, result, parameters)
        return Response(200, body, result.headers(), result.results)

    async def _predict_batch_frames(
        self, request: Request, uploads: Sequence[bytes | ViTError], parameters: _Parameters
    ) -> Response:
        results = await classify_frames(
            self._classifier, self._frames, request, uploads, parameters.frames, parts=parameters.parts
        )
        body = _batch_body(request, results, lambda result: self._frames_body(request, result, parameters))
        return Response(200, body, outcomes=outcomes_of(results))

    def _frames_body(self, request: Request, result: ClassifiedFrames, parameters: _Parameters) -> bytes:
        predictions = [one.prediction for one in result.results]
        encoded = self._encoder.encode_frames(
            result.frames, predictions, top_k=parameters.top_k, threshold=parameters.threshold
        )
        start = to_json(encoded)[:-1]
        return self._finish(request, start, is_cached=result.source is Source.HIT)

    def _body(self, request: Request, result: ClassifierResult, parameters: _Parameters) -> bytes:
        """Return the JSON of a response: the prediction, which is rendered once, and what belongs to this request."""
        top_k, threshold = parameters.top_k, parameters.threshold
        start = result.cached.rendered.get((top_k, threshold) if threshold else top_k)
        if start is None:
            start = self._render(result.cached, result.prediction, top_k, threshold)
        return self._finish(request, start, is_cached=result.source is Source.HIT)

    def _render(
        self, cached: CachedPrediction, prediction: Prediction, top_k: int | None, threshold: float = 0.0
    ) -> bytes:
        """Return the start of a response's JSON, and keep it with the prediction."""
        start = to_json(self._encoder.encode_response(prediction, top_k=top_k, threshold=threshold))[:-1]
        cached.add_rendered((top_k, threshold) if threshold else top_k, start)
        return start

    def _finish(self, request: Request, start: bytes, *, is_cached: bool) -> bytes:
        cached = b"true" if is_cached else b"false"
        return b'%s,"cached":%s,"processing_time_ms":%.3f%s' % (start, cached, request.elapsed_ms, self._end)

    def _parameters_of(self, request: Request, fields: Fields) -> _Parameters:
        """Return the parameters of the query or the body.

        Raises:
            BadRequest: One is out of range, has several values, or is misspelt.
        """
        plain = None if fields else _PLAIN_QUERIES.get(request.query)
        if plain is not None:
            return plain
        refuse_other_model(self._own, fields)
        values = collect(_NAMES, request.query, fields)
        threshold = threshold_of(values.get("threshold", 0))
        top_k = top_k_of(values.get("top_k", ALL if "threshold" in values else DEFAULT_TOP_K), self._max_top_k)
        is_short = (top_k is not None and top_k <= MAX_TOP_K) or self._is_complete(threshold)
        frames = integer_of("frames", values.get("frames", 1), MAX_FRAMES)
        return _Parameters(top_k, frames, threshold, 0 if is_short else ALL_CLASSES)


def _describe_top_k(maximum: int) -> dict[str, Any]:
    """Describe the parameter."""
    number = {"type": "integer", "minimum": 1, "maximum": maximum}
    return {
        "name": "top_k",
        "in": "query",
        "description": f"Number of classes to return, or `{ALL}`",
        "schema": {"anyOf": [number, {"type": "string", "enum": [ALL]}], "default": DEFAULT_TOP_K},
    }


def _batch_body(request: Request, results: Sequence[T | ViTError], render: Callable[[T], bytes]) -> bytes:
    """Return the JSON array of a response with several results; an error object stands for each that failed."""
    request_id = request.id.decode()
    bodies = [
        to_json(error_body(result, request_id)) if isinstance(result, ViTError) else render(result)
        for result in results
    ]
    return b"[" + b",".join(bodies) + b"]"
