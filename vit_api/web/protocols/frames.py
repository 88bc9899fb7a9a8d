"""Several frames of each upload: how they are admitted, and the JSON of their answers.

Each frame is an image for the limits of a request and of a client. Knows nothing of how frames are found or classified.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from vit_api.decoding.frames import STILL, Frame, FramePlan
from vit_api.errors import BadRequest, ViTError
from vit_api.ipc.records import Prediction
from vit_api.web.core.caller import ANY, Caller
from vit_api.web.core.classifier_result import ClassifierResult, Source
from vit_api.web.protocols.results import UploadClassifier, classify_one, raise_if_all_failed
from vit_api.web.requests import Headers, Request

MAX_FRAMES = 32
"""Maximum number of frames that are classified for one request."""


class FramesClassifier(Protocol):
    """Classifies frames, see `core.frame_classifier.FrameClassifier`."""

    async def plan(self, upload: bytes, count: int) -> FramePlan | None:
        """Choose the frames."""

    async def classify(
        self,
        upload: bytes,
        plan: FramePlan,
        deadline: float,
        *,
        bypass_cache: bool = False,
        caller: Caller = ANY,
        parts: int = 0,
    ) -> list[ClassifierResult]:
        """Classify them."""


class Encoder(Protocol):
    """Renders predictions; implemented by the LitAPI."""

    def encode_response(self, output: Prediction, *, top_k: int | None, threshold: float = 0.0) -> dict[str, Any]:
        """Return the `predictions` of the response body; None stands for all classes."""

    def encode_frames(
        self, frames: Sequence[Frame], outputs: Sequence[Prediction], *, top_k: int | None, threshold: float = 0.0
    ) -> dict[str, Any]:
        """Return the `predictions` and the `frames` of the response body."""


class ClassifiedFrames(NamedTuple):
    """The frames of one upload.

    Attributes:
        frames: The frames, in order.
        results: What became of each.
    """

    frames: Sequence[Frame]
    results: Sequence[ClassifierResult]

    @property
    def source(self) -> Source:
        """Where they come from: computed if one of them is."""
        sources = {result.source for result in self.results}
        return next(source for source in (Source.MISS, Source.COALESCED, Source.HIT) if source in sources)

    def headers(self) -> Headers:
        """Return the header that says where they come from."""
        return ((b"x-cache", self.source.value.encode()),)


async def classify_frames(
    classifier: UploadClassifier,
    frames: FramesClassifier,
    request: Request,
    uploads: Sequence[bytes | ViTError],
    count: int,
    *,
    parts: int = 0,
) -> list[ClassifiedFrames | ViTError]:
    """Classify up to `count` frames of each upload; one that fails, or already has, has its error in its place.

    Args:
        classifier: Classifies still pictures.
        frames: Classifies the frames of the others.
        request: The request, which was admitted.
        uploads: Its uploads, or the reasons why they can't be classified.
        count: Maximum number of frames of each.
        parts: What the answers must have besides the most probable classes, see `records.ALL_CLASSES`.

    Raises:
        BadRequest: They have too many frames together.
        RateLimited: The client's rate limit does not allow so many now.
        ViTError: All failed, at least one because of the server.
    """

    async def plan(upload: bytes | ViTError) -> FramePlan | ViTError | None:
        try:
            return upload if isinstance(upload, ViTError) else await frames.plan(upload, count)
        except ViTError as error:
            return error.with_traceback(None)  # see `HotCall.fail`

    plans = [await plan(upload) for upload in uploads]
    await _admit(request, plans)

    async def outcome_of(upload: bytes | ViTError, planned: FramePlan | ViTError | None) -> ClassifiedFrames | ViTError:
        if isinstance(planned, ViTError):
            return planned
        assert isinstance(upload, bytes)
        try:
            if planned is None:
                return ClassifiedFrames(STILL, [await classify_one(classifier, request, upload, parts)])
            results = await frames.classify(
                upload,
                planned,
                request.deadline,
                bypass_cache=request.bypasses_cache,
                caller=request.caller,
                parts=parts,
            )
            return ClassifiedFrames(planned.frames, results)
        except ViTError as error:
            return error.with_traceback(None)  # see `HotCall.fail`

    results = await asyncio.gather(*map(outcome_of, uploads, plans))
    raise_if_all_failed(results)
    return results


async def _admit(request: Request, plans: Sequence[FramePlan | ViTError | None]) -> None:
    """Check the number of frames, and charge the client for those after the first.

    Raises:
        BadRequest: There are too many together.
        RateLimited: The client's rate limit does not allow so many now.
    """
    total = sum(len(plan.frames) if isinstance(plan, FramePlan) else 1 for plan in plans)
    if total > MAX_FRAMES:
        raise BadRequest(
            f"The images have {total} frames together, and at most {MAX_FRAMES} are classified for one request. "
            "Send fewer images, or ask for fewer frames."
        )
    if total > 1:
        await request.admission.charge(total - 1)


def outcomes_of(results: Sequence[ClassifiedFrames | ViTError]) -> list[ClassifierResult | ViTError]:
    """Return the outcome of each frame, for observers."""
    outcomes: list[ClassifierResult | ViTError] = []
    for result in results:
        outcomes += [result] if isinstance(result, ViTError) else result.results
    return outcomes
