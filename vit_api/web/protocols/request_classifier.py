"""Classifies the uploads of a request, for every protocol. Knows nothing of the format of requests and responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from vit_api.decoding.uploads import Upload
from vit_api.errors import BodyTimeout, InternalError, ViTError
from vit_api.web.core.classifier import ClassifierResult, Source
from vit_api.web.requests import Headers, Request
from vit_api.web.time_limit import TimeLimit

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
    """Classify the uploads of requests within their time limits, and only while their clients are connected.

    Args:
        classifier: Classifies uploads.
        request_timeout_s: Seconds from a request's arrival to a 504.
        body_timeout_s: Seconds from a request's arrival until its body must be read.
        clock: The time in seconds.
    """

    def __init__(
        self,
        classifier: UploadClassifier,
        *,
        request_timeout_s: float,
        body_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._classifier = classifier
        self._request_timeout_s = request_timeout_s
        self._body_limit = TimeLimit(min(body_timeout_s, request_timeout_s), _late_body, clock)
        self._clock = clock

    async def read(self, request: Request, reading: Coroutine[Any, Any, T]) -> T:
        """Return what `reading` finds in the request's body.

        Raises:
            BodyTimeout: The body took too long.
        """
        found = await self._body_limit.hold(reading, request.timeline.arrived_at)
        request.timeline.parsed_at = self._clock()
        return found

    async def classify(self, request: Request, upload: Upload) -> ClassifierResult:
        """Classify the only upload of a request.

        Raises:
            ClientDisconnect: The client hung up.
            ViTError: The reason why it can't be classified.
        """
        bypass_cache = _bypasses_cache(request)
        key, result = await self._classifier.look_up(upload, bypass_cache=bypass_cache)
        request.timeline.looked_up_at = self._clock()
        if result is None:
            work = self._classifier.compute(key, upload, self._deadline_of(request), bypass_cache=bypass_cache)
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
        if len(uploads) > 1:
            await request.admission.charge(len(uploads) - 1)  # the first was charged when the request was admitted
        bypass_cache = _bypasses_cache(request)
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
            return result or await self._classifier.compute(
                key, upload, self._deadline_of(request), bypass_cache=bypass_cache
            )
        except ViTError as error:
            return error

    def _deadline_of(self, request: Request) -> float:
        return request.timeline.arrived_at + self._request_timeout_s

    def elapsed_ms(self, request: Request) -> float:
        """Return the milliseconds since a request's arrival."""
        return (self._clock() - request.timeline.arrived_at) * 1000


async def _gather(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    return await asyncio.gather(*work)


_HIT_HEADERS: Headers = ((b"x-cache", b"hit"),)


def source_headers(result: ClassifierResult) -> Headers:
    """Return the headers that say where a result comes from and, for a miss, how long its stages took."""
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


def _late_body() -> BodyTimeout:
    return BodyTimeout(
        "The request body did not arrive within the time limit. Send it faster, or send a smaller image."
    )


def _bypasses_cache(request: Request) -> bool:
    """Return whether the client requests `no-cache`; see RFC 9111, section 5.2.1.4."""
    if b"cache-control" not in request.headers:
        return False
    # The header may be repeated, and its values belong together.
    directives = b",".join(request.all_values(b"cache-control"))
    return b"no-cache" in [directive.strip().lower() for directive in directives.split(b",")]
