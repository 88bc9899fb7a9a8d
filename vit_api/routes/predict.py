"""`POST /predict` and `POST /predict/batch`: from a request to the answer's JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from vit_api.classifier import Classification, Classifier
from vit_api.errors import BadRequest, InternalError, ViTError
from vit_api.lit_api import DEFAULT_TOP_K
from vit_api.records import TOP_K, Prediction
from vit_api.routes.responses import error_body, json_response
from vit_api.routes.uploads import Uploads

_TOP_KS = {str(k): k for k in range(1, TOP_K + 1)}


class Encoder(Protocol):
    """What words a prediction: a LitAPI."""

    def encode_response(self, output: Prediction, *, top_k: int) -> dict[str, Any]:
        """Return the `predictions` of the answer's body."""


class PredictRoutes:
    """The handlers that classify.

    Args:
        classifier: Does the work.
        encoder: Words the predictions.
        uploads: Finds the images in requests.
        model_name: Named in each answer.
        request_timeout_s: Seconds from a request's arrival to a 504.
    """

    def __init__(
        self,
        classifier: Classifier,
        encoder: Encoder,
        uploads: Uploads,
        *,
        model_name: str,
        request_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._classifier = classifier
        self._encoder = encoder
        self._uploads = uploads
        self._model_name = model_name
        self._request_timeout_s = request_timeout_s
        self._clock = clock

    async def predict(self, request: Request) -> Response:
        """Classify one image."""
        arrived_at = self._clock()
        top_k = _top_k_of(request)
        deadline = arrived_at + self._request_timeout_s
        upload = await self._uploads.read_one(request, deadline)
        result = await self._classifier.classify(upload, deadline)
        return json_response(self._body(result, top_k, arrived_at), headers=_timing_headers(result))

    async def predict_batch(self, request: Request) -> Response:
        """Classify several images; a bad one gets its own error in its place.

        The images join the same batches as everyone's. If none is answered and at least one for the server's fault,
        the whole request gets that one's error, so that a client sees a 503 as such.
        """
        arrived_at = self._clock()
        top_k = _top_k_of(request)
        deadline = arrived_at + self._request_timeout_s
        uploads = await self._uploads.read_many(request, deadline)
        results = await asyncio.gather(*(self._result_of(upload, deadline) for upload in uploads))
        failures = [result for result in results if isinstance(result, ViTError)]
        ours = [failure for failure in failures if failure.status >= InternalError.status]
        if ours and len(failures) == len(results):
            raise ours[0]
        request_id = request.state.request_id
        return json_response(
            [
                error_body(result, request_id)
                if isinstance(result, ViTError)
                else self._body(result, top_k, arrived_at)
                for result in results
            ]
        )

    async def _result_of(self, upload: bytes | ViTError, deadline: float) -> Classification | ViTError:
        if isinstance(upload, ViTError):
            return upload
        try:
            return await self._classifier.classify(upload, deadline)
        except ViTError as error:
            return error

    def _body(self, result: Classification, top_k: int, arrived_at: float) -> dict[str, Any]:
        return {
            **self._encoder.encode_response(result.prediction, top_k=top_k),
            "cached": result.is_cached,
            "processing_time_ms": round((self._clock() - arrived_at) * 1000, 3),
            "model": self._model_name,
        }


def _timing_headers(result: Classification) -> dict[str, str]:
    return {
        "x-queue-time-ms": f"{result.queue_s * 1000:.3f}",
        "x-inference-time-ms": f"{result.inference_s * 1000:.3f}",
        "x-batch-size": str(result.batch_size),
    }


def _top_k_of(request: Request) -> int:
    """Return the query's `top_k`.

    Raises:
        BadRequest: It is not a whole number from 1 to 20.
    """
    if not request.scope["query_string"]:
        return DEFAULT_TOP_K
    top_k = _TOP_KS.get(request.query_params.get("top_k", str(DEFAULT_TOP_K)))
    if top_k is None:
        raise BadRequest(f"top_k must be a whole number from 1 to {TOP_K}")
    return top_k
