"""One model of the protocol: classifies the images of a request and encodes the answer. Knows nothing of paths."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from vit_api.decoding.uploads import Pixels, Upload
from vit_api.errors import ViTError
from vit_api.ipc.worker_board import WorkerBoard
from vit_api.web.core.classifier_result import ClassifierResult
from vit_api.web.protocols.open_inference.infer_request import HEADER_LENGTH, InferRequest, is_raw, parse_request
from vit_api.web.protocols.open_inference.inputs import Inputs
from vit_api.web.protocols.open_inference.model_info import ModelInfo, Statistics
from vit_api.web.protocols.open_inference.outputs import Outputs
from vit_api.web.protocols.open_inference.tensors import element
from vit_api.web.protocols.results import UploadClassifier, classify_one, classify_several, results_only, source_headers
from vit_api.web.repeats import Hit, HitFinder, uncount
from vit_api.web.requests import BodyLimit, Headers, Request
from vit_api.web.responses import Response
from vit_api.web.uploads import SHORT_BODY_BYTES, parse_body

_BINARY = b"application/octet-stream"
_SHORT_JSON_DIGITS = 4
_SHORT_JSON_BYTES = 10**_SHORT_JSON_DIGITS
"""JSON up to this size is parsed on the event loop; JSON of many numbers takes much longer than an upload in base64."""


_Parsed = tuple[InferRequest, Sequence[Upload]]


class ServedModel:
    """A model and a version of it.

    Args:
        classifier: Classifies the uploads.
        inputs: Converts inputs to uploads.
        outputs: Encodes responses.
        info: The model's metadata and configuration.
        statistics: The model's statistics.
        worker_board: Knows whether its workers accept images.
        traffic: Percentage of the model's clients that this version serves.
        max_body_bytes: Maximum size of a request's body.

    Attributes:
        info: See above.
        statistics: See above.
        worker_board: See above.
        traffic: See above.
    """

    def __init__(
        self,
        classifier: UploadClassifier,
        inputs: Inputs,
        outputs: Outputs,
        info: ModelInfo,
        *,
        statistics: Statistics,
        worker_board: WorkerBoard,
        max_body_bytes: int,
        traffic: float = 100.0,
    ) -> None:
        self._classifier = classifier
        self._inputs = inputs
        self._outputs = outputs
        self.info = info
        self.statistics = statistics
        self.worker_board = worker_board
        self.traffic = traffic
        self._file_limit = BodyLimit(inputs.max_upload_bytes, inputs.max_upload_bytes)
        self._parsed: tuple[bytes, _Parsed] | None = None  # what `find` has parsed, for `infer`
        self._body_limit = BodyLimit(max_body_bytes, max_body_bytes)

    def limit_of(self, request: Request) -> BodyLimit:
        """Return the maximum size of a request's body."""
        return self._file_limit if is_raw(request.headers.get(HEADER_LENGTH)) else self._body_limit

    async def infer(self, request: Request) -> Response:
        """Classify the images of a request; if one fails, the request fails."""
        infer_request, uploads = await self._parse_body(request)
        if infer_request.timeout_s is not None:
            request.limit_to(infer_request.timeout_s)
        if infer_request.urgency is not None:
            request.set_urgency(infer_request.urgency)
        request.timeline.parsed_at = time.monotonic()
        results, headers = await self._classify(request, infer_request, uploads)
        return self._respond(infer_request, results, headers)

    def find(self, request: Request, body: bytes) -> Response | None:
        """Return the response to a request with one file as binary data if it is cached."""
        length = request.headers.get(HEADER_LENGTH)
        if length is None or len(length) > _SHORT_JSON_DIGITS or len(body) > SHORT_BODY_BYTES or request.bypasses_cache:
            return None
        parsed = self._parse(body, length)
        upload = self._plain(parsed)
        parsed_at = time.monotonic()
        result = None if upload is None else self._classifier.find(upload)
        if result is None:
            self._parsed = (body, parsed)
            return None
        request.timeline.parsed_at = parsed_at
        return self._respond(parsed[0], [result], source_headers(result))

    def repeat(self, request: Request, response: Response) -> HitFinder:
        """Return what finds responses to requests like one that `find` has answered."""
        length, classifier = request.headers[HEADER_LENGTH], self._classifier
        header_length = dict(response.headers).get(HEADER_LENGTH)

        def find(body: bytes) -> Hit | None:
            if len(body) > SHORT_BODY_BYTES:
                return None
            try:
                parsed = self._parse(body, length)
            except ViTError:
                return None  # `find` raises it again
            upload = self._plain(parsed)
            cached = None if upload is None else classifier.find_again(upload)
            if upload is None or cached is None:
                return None
            content, json_bytes = self._outputs.encode(parsed[0], [cached.prediction])
            if (None if json_bytes is None else b"%d" % json_bytes) == header_length:
                return Hit(cached, upload, content, None)
            uncount(classifier.hold(cached))  # it will be looked up again
            return None

        return HitFinder(find, classifier.hold)

    def _plain(self, parsed: _Parsed) -> bytes | None:
        """Return the file of a request that has only one, and nothing that is not the same for all with its head."""
        infer_request, uploads = parsed
        if len(uploads) != 1 or infer_request.timeout_s is not None or infer_request.urgency is not None:
            return None
        (upload,) = uploads
        return None if isinstance(upload, Pixels) or self._outputs.parts_of(infer_request) else upload

    def _respond(self, infer_request: InferRequest, results: Sequence[ClassifierResult], headers: Headers) -> Response:
        body, header_length = self._outputs.encode(infer_request, [result.prediction for result in results])
        if header_length is None:
            return Response(200, body, headers, results)
        headers = [*headers, (HEADER_LENGTH, b"%d" % header_length)]
        return Response(200, body, headers, results, _BINARY)

    async def _parse_body(self, request: Request) -> _Parsed:
        length = request.headers.get(HEADER_LENGTH)
        is_short_json = length is not None and len(length) <= _SHORT_JSON_DIGITS
        short_bytes = SHORT_BODY_BYTES if is_short_json else _SHORT_JSON_BYTES
        body, found, self._parsed = request.take_body(), self._parsed, None
        if found is not None and found[0] is body:
            return found[1]
        return await parse_body(request, body, self._parse, length, short_bytes=short_bytes)

    def _parse(self, body: bytes, header_length: bytes | None) -> _Parsed:
        infer_request, tensor = parse_request(body, header_length, self._inputs.json_limits)
        self._outputs.check(infer_request)
        return infer_request, self._inputs.uploads_of(tensor)

    async def _classify(
        self, request: Request, infer_request: InferRequest, uploads: Sequence[Upload]
    ) -> tuple[list[ClassifierResult], Headers]:
        """Return the result of each image; for a single image also the headers with its source."""
        parts = self._outputs.parts_of(infer_request)
        if len(uploads) == 1:
            result = await classify_one(self._classifier, request, uploads[0], parts)
            return [result], source_headers(result)
        outcomes = await classify_several(self._classifier, request, uploads, parts)
        return list(results_only(outcomes, functools.partial(element, infer_request.input_name))), ()
