"""`POST /predict` and `POST /predict/batch`: from a request to the JSON of its response.

Knows nothing of how an image is classified.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from vit_api.errors import ViTError
from vit_api.ipc.records import DEFAULT_TOP_K, MAX_TOP_K, Prediction
from vit_api.web.core.classifier_result import ClassifierResult, Source
from vit_api.web.openapi.descriptions import ANSWER, FAILURES, FILE, URGENCY
from vit_api.web.openapi.schemas import ErrorResponse, PredictResponse
from vit_api.web.parameters import Fields, collect, integer_of
from vit_api.web.protocols.results import UploadClassifier, classify_one, classify_several, source_headers
from vit_api.web.requests import Request
from vit_api.web.responses import Response, error_body, to_json
from vit_api.web.routes import HotRoute, Operation
from vit_api.web.uploads import Uploads

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

_TOP_K = {
    "name": "top_k",
    "in": "query",
    "description": "Number of classes to return",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": DEFAULT_TOP_K},
}

_PARAMETERS = ("top_k",)
_PLAIN_QUERIES = {b"": DEFAULT_TOP_K} | {b"top_k=%d" % k: k for k in range(1, MAX_TOP_K + 1)}


class Encoder(Protocol):
    """Renders a prediction; implemented by the LitAPI."""

    def encode_response(self, output: Prediction, *, top_k: int) -> dict[str, Any]:
        """Return the `predictions` of the response body."""


class PredictRoutes:
    """The handlers of this server's own API.

    Args:
        classifier: Classifies the uploads.
        encoder: Renders the predictions.
        uploads: Finds the uploads in requests.
        model_name: The name in each response.
    """

    def __init__(self, classifier: UploadClassifier, encoder: Encoder, uploads: Uploads, *, model_name: str) -> None:
        self._classifier = classifier
        self._encoder = encoder
        self._uploads = uploads
        self._end = b',"model":' + to_json(model_name) + b"}"

    def routes(self) -> list[HotRoute]:
        """Return the routes."""
        one = Operation(
            "/predict",
            "classify_an_image",
            "Classify one image: the form field `file`, the raw bytes as the body, or base64 in JSON.",
            _ONE_UPLOAD,
            [_TOP_K, *URGENCY],
            ANSWER | FAILURES,
            PredictResponse,
        )
        several = Operation(
            "/predict/batch",
            "classify_several_images",
            "Classify 1 to 32 images. Results are in the order of the images; a failed image has an error object.",
            _MANY_UPLOADS,
            [_TOP_K, *URGENCY],
            FAILURES,
            list[PredictResponse | ErrorResponse],
        )
        uploads = self._uploads
        return [
            HotRoute("POST", "/predict", "/predict", self.predict, uploads.limit_of_one, one),
            HotRoute("POST", "/predict/batch", "/predict/batch", self.predict_batch, uploads.limit_of_several, several),
        ]

    async def predict(self, request: Request) -> Response:
        """Classify one image."""
        upload, fields = await self._uploads.find_one(request)
        top_k = _top_k_of(request, fields)
        request.timeline.parsed_at = time.monotonic()
        result = await classify_one(self._classifier, request, upload)
        return Response(200, self._body(request, result, top_k), source_headers(result), (result,))

    async def predict_batch(self, request: Request) -> Response:
        """Classify several images; one that fails has an error object in its position."""
        uploads, fields = await self._uploads.find_several(request)
        top_k = _top_k_of(request, fields)
        request.timeline.parsed_at = time.monotonic()
        results = await classify_several(self._classifier, request, uploads)
        request_id = request.id.decode()
        bodies = [
            to_json(error_body(result, request_id))
            if isinstance(result, ViTError)
            else self._body(request, result, top_k)
            for result in results
        ]
        return Response(200, b"[" + b",".join(bodies) + b"]", outcomes=results)

    def _body(self, request: Request, result: ClassifierResult, top_k: int) -> bytes:
        """Return the JSON of a response: the prediction, which is rendered once, and what belongs to this request."""
        start = result.cached.rendered.get(top_k)
        if start is None:
            start = to_json(self._encoder.encode_response(result.prediction, top_k=top_k))[:-1]
            result.cached.add_rendered(top_k, start)
        cached = b"true" if result.source is Source.HIT else b"false"
        return b'%s,"cached":%s,"processing_time_ms":%.3f%s' % (start, cached, request.elapsed_ms, self._end)


def _top_k_of(request: Request, fields: Fields) -> int:
    """Return `top_k` of the query or the body.

    Raises:
        BadRequest: It is not an integer from 1 to 20, has several values, or is misspelt.
    """
    top_k = None if fields else _PLAIN_QUERIES.get(request.query)
    if top_k is None:
        values = collect(_PARAMETERS, request.query, fields)
        top_k = integer_of("top_k", values.get("top_k", DEFAULT_TOP_K), MAX_TOP_K)
    return top_k
