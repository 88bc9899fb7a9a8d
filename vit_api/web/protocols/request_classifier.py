"""Classifies the uploads of a request, for every protocol. Knows nothing of the format of requests and responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from vit_api.decoding.uploads import Upload
from vit_api.errors import InternalError, ViTError
from vit_api.web.core.classifier import ClassifierResult, Source
from vit_api.web.requests import Headers, Request

T = TypeVar("T")


class UploadClassifier(Protocol):
    """Classifies uploads, see `core.classifier.Classifier`."""

    async def look_up(
        self, upload: Upload, *, bypass_cache: bool = False
    ) -> tuple[bytes | None, ClassifierResult | None]:
        """Return the upload's key, and the result if it is cached."""

    async def compute(
        self, key: bytes | None, upload: Upload, deadline: float, *, bypass_cache: bool = False
    ) -> ClassifierResult:
        """Classify an upload that is not cached."""


class RequestClassifier:
    """Classify the uploads of requests within their deadlines, and only while their clients are connected.

    Args:
        classifier: Classifies uploads.
    """

    def __init__(self, classifier: UploadClassifier) -> None:
        self._classifier = classifier

    async def classify(self, request: Request, upload: Upload) -> ClassifierResult:
        """Classify the only upload of a request.

        Raises:
            ClientDisconnect: The client hung up.
            ViTError: The reason why it can't be classified.
        """
        bypass_cache = request.bypasses_cache
        request.timeline.parsed_at = time.monotonic()
        key, result = await self._classifier.look_up(upload, bypass_cache=bypass_cache)
        request.timeline.looked_up_at = time.monotonic()
        if result is None:
            work = self._classifier.compute(key, upload, request.deadline, bypass_cache=bypass_cache)
            result = await request.unless_gone(work)
        return result

    async def classify_all(
        self, request: Request, uploads: Sequence[Upload | ViTError]
    ) -> list[ClassifierResult | ViTError]:
        """Classify the uploads of a request; one that fails, or already has, has its error in its place.

        They are batched together with those of all other requests. The client is charged for those after the first.

        Raises:
            ClientDisconnect: The client hung up.
            RateLimited: The client's rate limit does not allow so many now.
            ViTError: All failed, at least one because of the server, so that clients see a 503 as one.
        """
        request.timeline.parsed_at = time.monotonic()
        if len(uploads) > 1:
            await request.admission.charge(len(uploads) - 1)  # the first was charged when the request was admitted
        bypass_cache = request.bypasses_cache
        work = (self._outcome_of(request, upload, bypass_cache) for upload in uploads)
        results = await request.unless_gone(_gather(work))
        failures = [result for result in results if isinstance(result, ViTError)]
        ours = [failure for failure in failures if failure.status >= InternalError.status]
        if ours and len(failures) == len(results):
            raise ours[0]
        return results

    async def _outcome_of(
        self, request: Request, upload: Upload | ViTError, bypass_cache: bool
    ) -> ClassifierResult | ViTError:
        if isinstance(upload, ViTError):
            return upload
        try:
            key, result = await self._classifier.look_up(upload, bypass_cache=bypass_cache)
            return result or await self._classifier.compute(key, upload, request.deadline, bypass_cache=bypass_cache)
        except ViTError as error:
            return error


async def _gather(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    return await asyncio.gather(*work)


_HIT_HEADERS: Headers = ((b"x-cache", b"hit"),)


def source_headers(result: ClassifierResult) -> Headers:
    """Return the headers that say where a result comes from and, for a miss, how long its stages took."""
    if result.source is Source.HIT:
        return _HIT_HEADERS
    cache = (b"x-cache", result.source.value.encode())
    answer = result.own_answer
    if answer is None:
        return (cache,)
    return (
        cache,
        (b"x-queue-time-ms", b"%.3f" % (answer.queue_s * 1000)),
        (b"x-inference-time-ms", b"%.3f" % (answer.inference_s * 1000)),
        (b"x-batch-size", b"%d" % answer.batch_size),
    )
