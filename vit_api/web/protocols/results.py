"""What the protocols share: several uploads of one request, and the headers that say where a result comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Protocol

from vit_api.decoding.uploads import Upload
from vit_api.errors import BadRequest, InternalError, ViTError
from vit_api.ipc.records import AnswerRecord
from vit_api.web.core.caller import ANY, Caller
from vit_api.web.core.classifier import FoundHit
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source
from vit_api.web.parameters import Fields
from vit_api.web.repeats import Hit, HitFinder
from vit_api.web.requests import Headers, Request
from vit_api.web.uploads import Uploads

_MAX_SHOWN = 64

NO_EMBEDDING = "This model has no embeddings: its last layer does not read one vector for each image."
"""For clients that request one."""


class UploadClassifier(Protocol):
    """Classifies uploads, see `core.classifier.Classifier`."""

    def find(self, upload: bytes, parts: int = 0) -> ClassifierResult | None:
        """Return the classification of a file if it is cached."""

    def find_again(self, upload: bytes) -> CachedPrediction | None:
        """Return the prediction for a file if it is cached."""

    def hold(self, cached: CachedPrediction) -> FoundHit | None:
        """Return what `find_again` has just found, to find it again without a look-up."""

    async def classify(
        self, upload: Upload, deadline: float, *, bypass_cache: bool = False, caller: Caller = ANY, parts: int = 0
    ) -> ClassifierResult:
        """Classify one upload."""


def finder_of(
    classifier: UploadClassifier, uploads: Uploads, request: Request, render: Callable[[CachedPrediction, bytes], Hit]
) -> HitFinder:
    """Return what finds hits of requests with the same head, which send a file as the body, or alone in a form.

    Args:
        classifier: Has the caches.
        uploads: Finds the file in a form.
        request: The first of these requests.
        render: Returns the response, given the prediction and the file.
    """
    find_cached, only_file = classifier.find_again, uploads.only_file
    content_type, is_form = request.headers.get(b"content-type", b""), uploads.is_form(request)

    def find(body: bytes) -> Hit | None:
        upload = only_file(body, content_type) if is_form else body
        cached = None if upload is None else find_cached(upload)
        return None if upload is None or cached is None else render(cached, upload)

    return HitFinder(find, classifier.hold)


def classify_one(
    classifier: UploadClassifier, request: Request, upload: Upload, parts: int = 0
) -> Coroutine[Any, Any, ClassifierResult]:
    """Classify the one upload of a request, as its headers demand.

    Args:
        classifier: Classifies it.
        request: The request, which was admitted.
        upload: The upload.
        parts: What the answer must have besides the most probable classes, see `records.ALL_CLASSES`.

    Raises:
        ViTError: The reason why it can't be classified.
    """
    return classifier.classify(
        upload, request.deadline, bypass_cache=request.bypasses_cache, caller=request.caller, parts=parts
    )


async def classify_several(
    classifier: UploadClassifier, request: Request, uploads: Sequence[Upload | ViTError], parts: int = 0
) -> list[ClassifierResult | ViTError]:
    """Classify the uploads of a request; one that fails, or already has, has its error in its place.

    They are batched together with those of all other requests. The client is charged for those after the first.

    Args:
        classifier: Classifies each upload.
        request: The request, which was admitted.
        uploads: Its uploads, or the reasons why they can't be classified.
        parts: What the answers must have besides the most probable classes.

    Raises:
        RateLimited: The client's rate limit does not allow so many now.
        ViTError: All failed, at least one because of the server.
    """
    if len(uploads) > 1:
        await request.admission.charge(len(uploads) - 1)  # the first was charged when the request was admitted

    async def outcome_of(upload: Upload | ViTError) -> ClassifierResult | ViTError:
        if isinstance(upload, ViTError):
            return upload
        try:
            return await classify_one(classifier, request, upload, parts)
        except ViTError as error:
            return error.with_traceback(None)  # see `HotCall.fail`

    results = await asyncio.gather(*map(outcome_of, uploads))
    raise_if_all_failed(results)
    return results


def results_only(
    outcomes: Sequence[ClassifierResult | ViTError], name_of: Callable[[int], str]
) -> Iterator[ClassifierResult]:
    """Yield the results of a request, for protocols without partial responses.

    Args:
        outcomes: What `classify_several` returned.
        name_of: Returns the name of an image, given its number, for the error.

    Raises:
        ViTError: The first failure, which names its image.
    """
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, ViTError):
            raise outcome.about(name_of(number))
        yield outcome


def raise_if_all_failed(results: Sequence[object]) -> None:
    """Raise the first failure of the server's, if there is no result, so that clients see a 503 as one."""
    failures = [result for result in results if isinstance(result, ViTError)]
    ours = [failure for failure in failures if failure.status >= InternalError.status]
    if ours and len(failures) == len(results):
        raise ours[0]


def refuse_other_model(own: Mapping[str, str], fields: Fields) -> None:
    """Refuse a body that names another model than the one that was chosen: ignoring it would silently apply a default.

    Args:
        own: The `model` and `version` that were chosen; empty if the server has one model only.
        fields: What the body has besides the image.

    Raises:
        BadRequest: It names another one.
    """
    for name, value in fields:
        if name in own and value not in (own[name], None, ""):
            raise BadRequest(f"'{name}' is in the body. Send it in the query, as in ?{name}={str(value)[:_MAX_SHOWN]}.")


_NOT_RUN = b"-"


def batch_headers(outcomes: Sequence[ClassifierResult | ViTError]) -> Headers:
    """Return the headers that list, in the order of the images, how long the stages of each took.

    A dash stands for an image that the model did not run for. None if it ran for no image of the request.
    """
    answers = [None if isinstance(outcome, ViTError) else outcome.own_answer for outcome in outcomes]
    if not any(answers):
        return ()

    def listed(render: Callable[[AnswerRecord], bytes]) -> bytes:
        return b", ".join(_NOT_RUN if answer is None else render(answer) for answer in answers)

    return (
        (b"x-queue-times-ms", listed(lambda answer: b"%.3f" % (answer.queue_s * 1000))),
        (b"x-inference-times-ms", listed(lambda answer: b"%.3f" % (answer.inference_s * 1000))),
        (b"x-batch-sizes", listed(lambda answer: b"%d" % answer.batch_size)),
    )


HIT_HEADERS: Headers = ((b"x-cache", b"hit"),)


def source_headers(result: ClassifierResult) -> Headers:
    """Return the headers that say where a result comes from and, for a miss, how long its stages took."""
    if result.source is Source.HIT:
        return HIT_HEADERS
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
