"""The composition of an HTTP process: the only place where the parts of the HTTP half are made and joined."""

from __future__ import annotations

import asyncio
import json

from fastapi import APIRouter
from starlette.types import ASGIApp

from vit_api import __version__
from vit_api.access.client_address import ClientAddresses
from vit_api.access.rate_limiter import RateLimiter
from vit_api.access.redis_counts import RedisCounts
from vit_api.errors import NotReady
from vit_api.ipc.cache_board import CacheBoard, CacheTally
from vit_api.ipc.slots import OwnerSlots
from vit_api.lit_api import ViTAPI
from vit_api.shared import Shared
from vit_api.web.admission.keys import KeyCheck
from vit_api.web.admission.rate_limits import RateLimits
from vit_api.web.application import ProtocolRoutes, create_app
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.classifier import CachedPrediction, Classifier
from vit_api.web.core.inference import InferenceClient
from vit_api.web.core.redis_tier import RedisTier
from vit_api.web.observers.access_log import AccessLog
from vit_api.web.observers.exchange import Observer
from vit_api.web.observers.request_metrics import RequestMetrics
from vit_api.web.observers.tracing import Tracing
from vit_api.web.openapi.schemas import CacheInfo
from vit_api.web.operations.cache import cache_info, cache_router
from vit_api.web.operations.collector import MetricsCollector, Sources
from vit_api.web.operations.health import operations_router
from vit_api.web.operations.metrics import metrics_router
from vit_api.web.page.files import page_router
from vit_api.web.protocols.hugging_face import HuggingFaceRoutes
from vit_api.web.protocols.open_inference.inputs import Inputs
from vit_api.web.protocols.open_inference.model_info import ModelInfo, Statistics
from vit_api.web.protocols.open_inference.outputs import Outputs
from vit_api.web.protocols.open_inference.routes import OpenInferenceRoutes
from vit_api.web.protocols.predict import MAX_IMAGES_PER_REQUEST, PredictRoutes
from vit_api.web.protocols.request_classifier import RequestClassifier
from vit_api.web.uploads import Uploads


class HttpProcess:
    """The parts of one HTTP process.

    Args:
        shared: What it has in common with the others.
        lit_api: Decodes uploads and words answers.
        number: The process's.
    """

    def __init__(self, shared: Shared, lit_api: ViTAPI, number: int) -> None:
        self._shared = shared
        self._settings = shared.settings
        self._lit_api = lit_api
        self._number = number
        self._meter = shared.metrics_board.metrics_writer(f"http-{number}")
        self._tally = CacheTally(shared.cache_board, number)
        self._inference = InferenceClient(
            lit_api,
            OwnerSlots(shared.table, number),
            shared.worker_board,
            shared.requests,
            shared.answers[number],
            metrics_writer=self._meter,
            decode_threads=self._settings.decode_threads,
        )
        self._redis = self._redis_tier()
        self._redis_counts = self._counts_in_redis()
        self._classifier = Classifier(self._inference, self._tally, self._identity, self._cache(), self._redis)
        self._requests = RequestClassifier(
            self._classifier,
            request_timeout_s=self._settings.request_timeout_s,
            body_timeout_s=self._settings.body_timeout_s,
        )
        self._tracing = Tracing() if self._settings.traces else None

    def app(self) -> ASGIApp:
        """Return the ASGI application."""
        return create_app(
            self._protocols(),
            [page_router(), self._operations_router(), self._cache_router(), self._metrics_router()],
            self._observers(),
            start=self._start,
            stop=self._stop,
            max_pending_bytes=self._settings.max_pending_bytes,
            is_draining=self._shared.worker_board.is_draining,
            keys=self._key_check(),
            limits=self._rate_limits(),
            cors_origins=self._settings.allowed_origins,
        )

    async def _start(self) -> None:
        self._inference.start()
        self._classifier.start()
        for part in (self._redis, self._redis_counts):
            if part is not None:
                part.start()

    async def _stop(self) -> None:
        self._classifier.stop()
        self._inference.stop()
        for part in (self._redis, self._redis_counts):
            if part is not None:
                await part.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _protocols(self) -> list[ProtocolRoutes]:
        settings, checkpoint = self._settings, self._shared.checkpoint
        uploads = Uploads(
            max_bytes=settings.max_upload_bytes,
            max_count=MAX_IMAGES_PER_REQUEST,
            max_total_bytes=settings.max_batch_upload_bytes,
        )
        return [
            PredictRoutes(self._requests, self._lit_api, uploads, model_name=checkpoint.name),
            HuggingFaceRoutes(self._requests, uploads, checkpoint.labels),
            self._open_inference_routes(),
        ]

    def _open_inference_routes(self) -> OpenInferenceRoutes:
        shared, settings = self._shared, self._settings
        checkpoint = shared.checkpoint
        inputs = Inputs(
            checkpoint.preprocessing, max_images=MAX_IMAGES_PER_REQUEST, max_upload_bytes=settings.max_upload_bytes
        )
        outputs = Outputs(checkpoint.name, checkpoint.labels)
        model = ModelInfo(
            checkpoint.name,
            inputs.specs(),
            outputs.specs(),
            devices=shared.devices,
            workers_per_device=settings.workers_per_device,
            max_batch_size=settings.max_batch_size,
            max_wait_ms=settings.max_wait_ms,
            max_images=MAX_IMAGES_PER_REQUEST,
            has_cache=bool(settings.cache_size),
        )
        return OpenInferenceRoutes(
            self._requests,
            inputs,
            outputs,
            model,
            statistics=Statistics(checkpoint.name, shared.metrics_board, shared.worker_board, self._cache_board),
            board=shared.worker_board,
            max_body_bytes=settings.max_batch_upload_bytes,
        )

    def _observers(self) -> list[Observer]:
        observers: list[Observer] = [RequestMetrics(self._meter)]
        if self._settings.access_log:
            observers.append(AccessLog())
        if self._tracing is not None:
            observers.append(self._tracing)
        return observers

    def _cache(self) -> AnswerCache[CachedPrediction] | None:
        size = self._settings.cache_size
        return AnswerCache[CachedPrediction](size, self._settings.cache_ttl_s, self._tally) if size else None

    @property
    def _cache_board(self) -> CacheBoard | None:
        """What the caches count; None where nothing is remembered."""
        return self._shared.cache_board if self._settings.cache_size else None

    def _redis_tier(self) -> RedisTier | None:
        if self._settings.redis_url is None:
            return None
        return RedisTier(
            self._settings.redis_url.get_secret_value(),
            namespace=self._shared.checkpoint.name,
            classes=len(self._shared.checkpoint.labels),
            ttl_s=self._settings.cache_ttl_s,
            tally=self._tally,
        )

    def _identity(self) -> str:
        """Return what else than the upload determines an answer."""
        dtypes = self._shared.worker_board.dtypes()
        if not dtypes:
            raise NotReady("the model is still loading; try again soon")
        decoding = "exact" if self._settings.exact_decode else "draft"
        checkpoint = [self._shared.checkpoint.name, self._shared.checkpoint_identity]
        return json.dumps([__version__, *checkpoint, dtypes, decoding])

    def _key_check(self) -> KeyCheck | None:
        digests = self._settings.key_digests
        return KeyCheck(digests, has_public_metrics=self._settings.metrics_public) if digests else None

    def _counts_in_redis(self) -> RedisCounts | None:
        url = self._settings.redis_url
        return None if url is None or self._shared.budgets is None else RedisCounts(url.get_secret_value())

    def _rate_limits(self) -> RateLimits | None:
        if self._shared.budgets is None:
            return None
        limiter = RateLimiter(self._shared.budgets, self._number, self._redis_counts)
        return RateLimits(limiter, ClientAddresses(self._settings.trusted_networks), self._settings.rates)

    def _operations_router(self) -> APIRouter:
        shared, settings = self._shared, self._settings
        # The model as clients know it: the setting may be a path of this machine.
        shown = settings.model_dump(mode="json") | {"model": shared.checkpoint.name}

        def cache() -> CacheInfo | None:
            has_redis = settings.redis_url is not None
            return cache_info(shared.cache_board, has_redis=has_redis) if settings.cache_size else None

        return operations_router(
            shared.checkpoint, shared.worker_board, shared.table, shared.devices, settings=shown, cache_info=cache
        )

    def _metrics_router(self) -> APIRouter:
        shared = self._shared
        has_redis = self._settings.redis_url is not None
        return metrics_router(
            MetricsCollector(
                Sources(
                    shared.checkpoint,
                    shared.metrics_board,
                    shared.worker_board,
                    shared.table,
                    self._cache_board,
                    has_redis=has_redis,
                )
            )
        )

    def _cache_router(self) -> APIRouter:
        key = self._settings.operator_key
        return cache_router(
            self._shared.cache_board,
            None if key is None else key.get_secret_value(),
            None if self._redis is None else self._redis.clear,
        )
