"""What every path that classifies does with a request's uploads. Knows nothing of forms of requests and answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from vit_api.decoding.uploads import Upload
from vit_api.errors import BodyTimeout, InternalError, ViTError
from vit_api.web.core.classifier import Classifier, ClassifierResult, Source
from vit_api.web.requests import Headers, Request
from vit_api.web.time_limit import TimeLimit

T = TypeVar("T")


class RequestClassifier:
    """Classify what requests bring, within their time limits and unless their clients hang up.

    Args:
        classifier: Does the work.
        request_timeout_s: Seconds from a request's arrival to a 504.
        body_timeout_s: Seconds from a request's arrival that its body may take.
        clock: The time in seconds.
    """

    def __init__(
        self,
        classifier: Classifier,
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
        found = await self._body_limit.hold(reading, request.arrived_at)
        request.parsed_at = self._clock()
        return found

    async def classify(self, request: Request, upload: Upload) -> ClassifierResult:
        """Classify a request's only upload.

        Raises:
            ClientDisconnect: The client hung up.
            ViTError: Whatever kept it from being classified.
        """
        is_fresh = _wants_fresh(request)
        key, result = await self._classifier.look_up(upload, bypass_cache=is_fresh)
        request.looked_up_at = self._clock()
        if result is None:
            work = self._classifier.compute(key, upload, self._deadline_of(request), bypass_cache=is_fresh)
            result = await request.unless_gone(work)
        return result

    async def classify_all(
        self, request: Request, uploads: Sequence[Upload | ViTError]
    ) -> list[ClassifierResult | ViTError]:
        """Classify a request's uploads; one that fails, or already did, has its error in its place.

        The images join the same batches as everyone's. Those beside the first are counted in the client's budget.

        Raises:
            ClientDisconnect: The client hung up.
            RateLimited: The client may not send so many now.
            ViTError: All failed, at least one for the server's fault: so that a client sees a 503 as such.
        """
        if len(uploads) > 1:
            await request.charge(len(uploads) - 1)  # the first was counted at the door
        deadline, is_fresh = self._deadline_of(request), _wants_fresh(request)
        results = await request.unless_gone(self._results_of(uploads, deadline, is_fresh))
        failures = [result for result in results if isinstance(result, ViTError)]
        ours = [failure for failure in failures if failure.status >= InternalError.status]
        if ours and len(failures) == len(results):
            raise ours[0]
        return results

    async def _results_of(
        self, uploads: Sequence[Upload | ViTError], deadline: float, is_fresh: bool
    ) -> list[ClassifierResult | ViTError]:
        return await asyncio.gather(*(self._result_of(upload, deadline, is_fresh) for upload in uploads))

    async def _result_of(
        self, upload: Upload | ViTError, deadline: float, is_fresh: bool
    ) -> ClassifierResult | ViTError:
        if isinstance(upload, ViTError):
            return upload
        try:
            key, result = await self._classifier.look_up(upload, bypass_cache=is_fresh)
            return result or await self._classifier.compute(key, upload, deadline, bypass_cache=is_fresh)
        except ViTError as error:
            return error

    def _deadline_of(self, request: Request) -> float:
        return request.arrived_at + self._request_timeout_s

    def elapsed_ms(self, request: Request) -> float:
        """Return the milliseconds since a request's arrival."""
        return (self._clock() - request.arrived_at) * 1000


_HIT_HEADERS: Headers = ((b"x-cache", b"hit"),)


def source_headers(result: ClassifierResult) -> Headers:
    """Return the headers that tell where an answer comes from, and what the model's run took if it was its own."""
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
    return BodyTimeout("the request's body did not arrive within the time limit; send it faster")


def _wants_fresh(request: Request) -> bool:
    """Tell whether the client asks for an answer that nobody remembers; see RFC 9111, section 5.2.1.4."""
    if b"cache-control" not in request.headers:
        return False
    # The header may be repeated, and its values belong together.
    directives = b",".join(value for name, value in request.scope["headers"] if name == b"cache-control")
    return b"no-cache" in [directive.strip().lower() for directive in directives.split(b",")]
