"""The composition of one deployment in an HTTP process: its cache, its way to the workers, and its handlers."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vit_api import __version__, metrics
from vit_api.decoding.resizing import resizer_name
from vit_api.errors import NotReady
from vit_api.ipc.cache_board import CacheTally
from vit_api.ipc.records import ALL_CLASSES
from vit_api.ipc.slots import OwnerSlots
from vit_api.shared.deployment import MAX_LONG_CACHE_BYTES, SharedDeployment, is_complete
from vit_api.shared.server import Shared
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.classifier import Classifier
from vit_api.web.core.classifier_result import CachedPrediction
from vit_api.web.core.decode_turns import DecodeTurns
from vit_api.web.core.frame_classifier import FrameClassifier, FrameDecoder
from vit_api.web.core.inference import GONE, Decoder, InferenceClient
from vit_api.web.core.mirror import Mirror, MirroredInference
from vit_api.web.core.shared_answers import SharedAnswers
from vit_api.web.core.shared_flights import SharedFlights
from vit_api.web.protocols.frames import Encoder
from vit_api.web.protocols.hugging_face import HuggingFaceRoutes
from vit_api.web.protocols.open_inference.inputs import Inputs
from vit_api.web.protocols.open_inference.model_info import ModelInfo, Statistics
from vit_api.web.protocols.open_inference.outputs import Outputs
from vit_api.web.protocols.open_inference.served_model import ServedModel
from vit_api.web.protocols.openai.embeddings import EmbeddingModel
from vit_api.web.protocols.openai.moderations import ModerationModel
from vit_api.web.protocols.predict import MAX_IMAGES_PER_REQUEST, PredictRoutes
from vit_api.web.uploads import Uploads

if TYPE_CHECKING:
    from vit_api.web.core.redis_tier import RedisTier


class DecoderAndEncoder(Decoder, FrameDecoder, Encoder, Protocol):
    """The hooks of the LitAPI that run in an HTTP process."""


@dataclass(frozen=True)
class ProcessParts:
    """What the deployments of an HTTP process have in common.

    Attributes:
        number: The number of the process.
        turns: The decoding threads.
        flights: What all HTTP processes compute.
        uploads: Finds the uploads in requests.
    """

    number: int
    turns: DecodeTurns
    flights: SharedFlights
    uploads: Uploads


class DeploymentCore:
    """The parts of a deployment that run in the background of an HTTP process, as well as on requests.

    Args:
        shared: What the processes of the server share.
        deployment: What they share of this deployment.
        decoder: Decodes uploads.
        parts: What the deployments of this process have in common.
        slots: This process's slots, as this deployment sees them.

    Attributes:
        classifier: Classifies images.
        frames: Classifies the frames of animations.
        redis: The tier that several servers share; None if there is none.
    """

    def __init__(
        self,
        shared: Shared,
        deployment: SharedDeployment,
        decoder: DecoderAndEncoder,
        parts: ProcessParts,
        slots: OwnerSlots,
    ) -> None:
        metrics_writer = deployment.metrics_board.metrics_writer(f"http-{parts.number}")
        tally = CacheTally(deployment.cache_board, parts.number)
        title = deployment.spec.title
        may_have_mirror = deployment.number in shared.mirrors or shared.settings.max_models is not None
        self._inference = (MirroredInference if may_have_mirror else InferenceClient)(
            decoder,
            slots,
            deployment.worker_board,
            deployment.requests,
            deployment.answers[parts.number],
            metrics_writer=metrics_writer,
            turns=parts.turns,
            gone=f"The workers of {title!r} crashed and can't be restarted." if shared.has_several else GONE,
        )
        self._slots = slots
        self._deployment = deployment
        self.redis = _redis_tier(shared, deployment, tally)
        cache, long_cache = _caches(shared, deployment, parts.number, tally)
        all_classes = ALL_CLASSES if deployment.needs_all_classes else 0
        identity = functools.partial(_identity, shared, deployment)
        look_up_s = (metrics_writer.counter(metrics.LOOK_UP, "hit"), metrics_writer.counter(metrics.LOOK_UP, "miss"))
        self.classifier = Classifier(
            self._inference,
            tally,
            identity,
            cache,
            self.redis,
            flights=parts.flights,
            look_up_s=look_up_s,
            long_cache=long_cache,
            parts=all_classes,
        )
        self.frames = FrameClassifier(
            decoder,
            self._inference,
            tally,
            identity,
            cache=cache,
            shared=self.redis,
            flights=parts.flights,
            long_cache=long_cache,
            parts=all_classes,
        )

    def new_mirror(self, timeout_s: float, skip: Callable[[], None]) -> Mirror:
        """Return what has the workers compute what other versions have answered.

        Args:
            timeout_s: Seconds that they have for an image.
            skip: Called for each image that they do not get after all.
        """
        board = self._deployment.worker_board
        return Mirror(self._inference, self._slots, board, share=0.0, timeout_s=timeout_s, skip=skip)

    def mirror_to(self, mirror: Mirror | None) -> None:
        """Have a mirror compute what the workers answer from now on; None: nothing does."""
        if isinstance(self._inference, MirroredInference):
            self._inference.mirror = mirror

    def start(self) -> None:
        """Start what runs in the background, on the running event loop."""
        self._inference.start()
        self.classifier.start()
        if self.redis is not None:
            self.redis.start()

    async def stop(self) -> None:
        """Stop it."""
        self.classifier.stop()
        self._inference.stop()
        if self.redis is not None:
            await self.redis.stop()


@dataclass(frozen=True)
class Handlers:
    """What answers the requests for a deployment, by protocol."""

    predict: PredictRoutes
    hugging_face: HuggingFaceRoutes
    moderations: ModerationModel
    embeddings: EmbeddingModel
    open_inference: ServedModel


def build_handlers(
    shared: Shared, deployment: SharedDeployment, core: DeploymentCore, encoder: Encoder, parts: ProcessParts
) -> Handlers:
    """Return the handlers of a deployment."""
    checkpoint, version = deployment.checkpoint, deployment.spec.version
    own = {"model": checkpoint.name, "version": version} if shared.has_several else {}
    predict = PredictRoutes(
        core.classifier,
        encoder,
        parts.uploads,
        frames=core.frames,
        model_name=checkpoint.name,
        classes=len(checkpoint.labels),
        is_complete=functools.partial(is_complete, checkpoint),
        version=own.get("version"),
    )
    hugging_face = HuggingFaceRoutes(
        core.classifier,
        parts.uploads,
        checkpoint.labels,
        has_sigmoid=checkpoint.has_sigmoid,
        device=shared.devices[0],
        own=own,
    )
    moderations = ModerationModel(
        core.classifier,
        model_name=checkpoint.name,
        labels=checkpoint.labels,
        has_sigmoid=checkpoint.has_sigmoid,
        categories=deployment.categories,
        thresholds=deployment.thresholds,
    )
    embeddings = EmbeddingModel(core.classifier, model_name=checkpoint.name)
    return Handlers(predict, hugging_face, moderations, embeddings, _served_model(shared, deployment, core.classifier))


def _served_model(shared: Shared, deployment: SharedDeployment, classifier: Classifier) -> ServedModel:
    settings, spec, checkpoint = shared.settings, deployment.spec, deployment.checkpoint
    inputs = Inputs(
        checkpoint.preprocessing, max_images=MAX_IMAGES_PER_REQUEST, max_upload_bytes=settings.max_upload_bytes
    )
    outputs = Outputs(checkpoint.name, checkpoint.labels, has_sigmoid=checkpoint.has_sigmoid, version=spec.version)
    assert spec.max_batch_size is not None
    assert spec.workers_per_device is not None
    info = ModelInfo(
        checkpoint.name,
        inputs.specs(),
        outputs.specs(),
        devices=shared.devices,
        workers_per_device=spec.workers_per_device,
        max_batch_size=spec.max_batch_size,
        max_wait_ms=settings.max_wait_ms,
        max_images=MAX_IMAGES_PER_REQUEST,
        has_cache=bool(settings.cache_size),
        version=spec.version,
        versions=[one.spec.version for one in shared.served if one.spec.name == spec.name],
    )
    cache_board = deployment.cache_board if settings.cache_size else None
    return ServedModel(
        classifier,
        inputs,
        outputs,
        info,
        statistics=Statistics(
            checkpoint.name, deployment.metrics_board, deployment.batch_stats, cache_board, spec.version
        ),
        worker_board=deployment.worker_board,
        traffic=spec.traffic or 0.0,
        max_body_bytes=settings.max_batch_upload_bytes,
    )


def _redis_tier(shared: Shared, deployment: SharedDeployment, tally: CacheTally) -> RedisTier | None:
    settings, name = shared.settings, deployment.checkpoint.name
    if settings.redis_url is None:
        return None
    from vit_api.web.core.redis_tier import RedisTier  # not at the top: few servers have a Redis

    return RedisTier(
        settings.redis_url.get_secret_value(),
        namespace=f"{name}@{deployment.spec.version}" if shared.has_several else name,
        classes=len(deployment.checkpoint.labels),
        ttl_s=settings.cache_ttl_s,
        tally=tally,
    )


def _caches(
    shared: Shared, deployment: SharedDeployment, number: int, tally: CacheTally
) -> tuple[AnswerCache[CachedPrediction], AnswerCache[CachedPrediction]] | tuple[None, None]:
    """Return the caches of a process: of answers with the most probable classes, and of long ones."""
    if deployment.answer_table is None or deployment.long_table is None:
        return None, None
    size, ttl_s = shared.settings.cache_size, shared.settings.cache_ttl_s
    short = AnswerCache[CachedPrediction](size, ttl_s, tally, SharedAnswers(deployment.answer_table, number, tally))
    long = AnswerCache[CachedPrediction](
        size,
        ttl_s,
        tally,
        SharedAnswers(deployment.long_table, number, tally),
        max_bytes=MAX_LONG_CACHE_BYTES,
        size_of=lambda cached: cached.size,
        gauge="long_entries",
    )
    return short, long


def _identity(shared: Shared, deployment: SharedDeployment) -> str:
    """Return what determines an answer besides the upload."""
    dtypes = deployment.worker_board.dtypes()
    if not dtypes:
        raise NotReady("The model is still loading. Retry shortly.")
    exact = shared.settings.exact_decode
    decoding = ["exact" if exact else "draft", resizer_name(exact=exact), shared.settings.background]
    identity = [__version__, deployment.checkpoint.name, deployment.checkpoint_identity, dtypes, decoding]
    return json.dumps([*identity, deployment.spec.version] if shared.has_several else identity)
