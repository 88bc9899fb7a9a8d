"""`POST /predict` and `POST /predict/batch`: from a request to the answer's JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol
from urllib.parse import parse_qsl

from vit_api.classifier import Classification, Classifier, Source
from vit_api.errors import BadRequest, BodyTimeout, InternalError, ViTError
from vit_api.lit_api import DEFAULT_TOP_K
from vit_api.records import TOP_K, Prediction
from vit_api.routes.messages import Headers, Request, Response, to_json
from vit_api.routes.responses import error_body
from vit_api.routes.time_limit import TimeLimit
from vit_api.routes.uploads import Uploads

_TOP_KS = {str(k): k for k in range(1, TOP_K + 1)}
_PLAIN_QUERIES = {b"": DEFAULT_TOP_K} | {b"top_k=%d" % k: k for k in range(1, TOP_K + 1)}


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
        body_timeout_s: Seconds from a request's arrival that its body may take.
    """

    def __init__(
        self,
        classifier: Classifier,
        encoder: Encoder,
        uploads: Uploads,
        *,
        model_name: str,
        request_timeout_s: float,
        body_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._classifier = classifier
        self._encoder = encoder
        self._uploads = uploads
        self._end = b',"model":' + to_json(model_name) + b"}"
        self._request_timeout_s = request_timeout_s
        self._body_limit = TimeLimit(min(body_timeout_s, request_timeout_s), _late_body, clock)
        self._clock = clock

    async def predict(self, request: Request) -> Response:
        """Classify one image."""
        arrived_at = self._clock()
        top_k = _top_k_of(request)
        deadline = arrived_at + self._request_timeout_s
        upload = await self._body_limit.hold(self._uploads.read_one(request), arrived_at)
        request.parsed_at = self._clock()
        is_fresh = _wants_fresh(request)
        key, result = await self._classifier.look_up(upload, is_fresh=is_fresh)
        request.looked_up_at = self._clock()
        if result is None:
            work = self._classifier.compute(key, upload, deadline, is_fresh=is_fresh)
            result = await request.unless_gone(work)
        return Response(200, self._body(result, top_k, arrived_at), _headers(result), (result,))

    async def predict_batch(self, request: Request) -> Response:
        """Classify several images; a bad one gets its own error in its place.

        The images join the same batches as everyone's. If none is answered and at least one for the server's fault,
        the whole request gets that one's error, so that a client sees a 503 as such.
        """
        arrived_at = self._clock()
        top_k = _top_k_of(request)
        deadline = arrived_at + self._request_timeout_s
        uploads = await self._body_limit.hold(self._uploads.read_many(request), arrived_at)
        request.parsed_at = self._clock()
        if len(uploads) > 1:
            await request.charge(len(uploads) - 1)  # the first was counted at the door
        is_fresh = _wants_fresh(request)
        results = await request.unless_gone(self._results_of(uploads, deadline, is_fresh))
        failures = [result for result in results if isinstance(result, ViTError)]
        ours = [failure for failure in failures if failure.status >= InternalError.status]
        if ours and len(failures) == len(results):
            raise ours[0]
        request_id = request.id.decode()
        bodies = [
            to_json(error_body(result, request_id))
            if isinstance(result, ViTError)
            else self._body(result, top_k, arrived_at)
            for result in results
        ]
        return Response(200, b"[" + b",".join(bodies) + b"]", outcomes=results)

    async def _results_of(
        self, uploads: Iterable[bytes | ViTError], deadline: float, is_fresh: bool
    ) -> list[Classification | ViTError]:
        return await asyncio.gather(*(self._result_of(upload, deadline, is_fresh) for upload in uploads))

    async def _result_of(self, upload: bytes | ViTError, deadline: float, is_fresh: bool) -> Classification | ViTError:
        if isinstance(upload, ViTError):
            return upload
        try:
            return await self._classifier.classify(upload, deadline, is_fresh=is_fresh)
        except ViTError as error:
            return error

    def _body(self, result: Classification, top_k: int, arrived_at: float) -> bytes:
        """Return the answer's JSON: the prediction, which is worded once, and what is this request's own."""
        known = result.known
        start = known.wordings.get(top_k)
        if start is None:
            prediction = known.prediction if result.answer is None else result.answer.prediction
            start = to_json(self._encoder.encode_response(prediction, top_k=top_k))[:-1]
            known.add_wording(top_k, start)
        cached = b"true" if result.answer is None else b"false"
        elapsed_ms = (self._clock() - arrived_at) * 1000
        return b'%s,"cached":%s,"processing_time_ms":%.3f%s' % (start, cached, elapsed_ms, self._end)


_HIT_HEADERS: Headers = ((b"x-cache", b"hit"),)


def _late_body() -> BodyTimeout:
    return BodyTimeout("the request's body did not arrive within the time limit; send it faster")


def _headers(result: Classification) -> Headers:
    """Return the headers that tell where the answer comes from, and what the model's run took if it was its own."""
    answer = result.answer
    if answer is None:
        return _HIT_HEADERS
    cache = (b"x-cache", result.source.value.encode())
    if result.source is not Source.MISS:
        return (cache,)
    return (
        cache,
        (b"x-queue-time-ms", b"%.3f" % (answer.queue_s * 1000)),
        (b"x-inference-time-ms", b"%.3f" % (answer.inference_s * 1000)),
        (b"x-batch-size", b"%d" % answer.batch_size),
    )


def _wants_fresh(request: Request) -> bool:
    """Tell whether the client asks for an answer that nobody remembers; see RFC 9111, section 5.2.1.4."""
    if b"cache-control" not in request.headers:
        return False
    # The header may be repeated, and its values belong together.
    directives = b",".join(value for name, value in request.scope["headers"] if name == b"cache-control")
    return b"no-cache" in [directive.strip().lower() for directive in directives.split(b",")]


def _top_k_of(request: Request) -> int:
    """Return the query's `top_k`.

    Raises:
        BadRequest: It is not a whole number from 1 to 20.
    """
    query: bytes = request.scope["query_string"]
    top_k = _PLAIN_QUERIES.get(query)
    if top_k is None:
        values = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        top_k = _TOP_KS.get(values.get("top_k", str(DEFAULT_TOP_K)))
    if top_k is None:
        raise BadRequest(f"top_k must be a whole number from 1 to {TOP_K}")
    return top_k
