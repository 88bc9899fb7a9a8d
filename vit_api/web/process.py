"""The composition of an HTTP process: the only place where the parts of the HTTP half are created and connected."""

from __future__ import annotations

import asyncio
import functools
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fastapi.routing import APIRoute

from vit_api import __version__, metrics
from vit_api.access.client_address import ClientAddresses
from vit_api.access.rate_limiter import RateLimiter
from vit_api.access.redis_counts import RedisCounts
from vit_api.decoding.resizing import resizer_name
from vit_api.errors import NotReady
from vit_api.ipc.cache_board import CacheTally
from vit_api.ipc.flight_board import ProcessFlights
from vit_api.ipc.metrics_board import MetricsWriter
from vit_api.ipc.records import ALL_CLASSES
from vit_api.ipc.slots import OwnerSlots
from vit_api.shared import MAX_LONG_CACHE_BYTES, Shared, is_complete
from vit_api.web.admission.keys import KeyCheck
from vit_api.web.admission.rate_limits import RateLimits
from vit_api.web.application import WebApplication, create_app
from vit_api.web.bodies import BodyWork
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.classifier import Classifier
from vit_api.web.core.classifier_result import CachedPrediction
from vit_api.web.core.frame_classifier import FrameClassifier, FrameDecoder
from vit_api.web.core.inference import Decoder, InferenceClient
from vit_api.web.core.redis_tier import RedisTier
from vit_api.web.core.shared_answers import SharedAnswers
from vit_api.web.core.shared_flights import SharedFlights
from vit_api.web.door.answers import DateHeader
from vit_api.web.door.connections import Connections
from vit_api.web.door.head_cache import HeadCache
from vit_api.web.door.limits import DoorLimits, max_connections
from vit_api.web.door.protocol import Door
from vit_api.web.observers.access_log import AccessLog
from vit_api.web.observers.decisions.decision import DecisionContext, DecisionRenderer
from vit_api.web.observers.decisions.file_sink import FileSink
from vit_api.web.observers.decisions.log import DecisionCounters, DecisionLog
from vit_api.web.observers.decisions.url_sink import UrlSink
from vit_api.web.observers.exchange import Observer
from vit_api.web.observers.prediction_metrics import FlaggedLabels, PredictionMetrics
from vit_api.web.observers.request_metrics import RequestMetrics
from vit_api.web.observers.tracing import Tracing
from vit_api.web.openapi.schemas import CacheInfo
from vit_api.web.operations.cache import cache_info, cache_router
from vit_api.web.operations.collector import MetricsCollector, Sources
from vit_api.web.operations.health import health_router
from vit_api.web.operations.info import info_router
from vit_api.web.operations.metrics import metrics_router
from vit_api.web.page.files import page_router
from vit_api.web.protocols.frames import Encoder
from vit_api.web.protocols.hugging_face import HuggingFaceRoutes
from vit_api.web.protocols.open_inference.inputs import Inputs
from vit_api.web.protocols.open_inference.model_info import ModelInfo, Statistics
from vit_api.web.protocols.open_inference.outputs import Outputs
from vit_api.web.protocols.open_inference.routes import OpenInferenceRoutes
from vit_api.web.protocols.openai.embeddings import EmbeddingRoutes
from vit_api.web.protocols.openai.moderations import ModerationRoutes
from vit_api.web.protocols.predict import MAX_IMAGES_PER_REQUEST, PredictRoutes
from vit_api.web.requests import RequestLimits
from vit_api.web.routes import ProtocolRoutes, Route
from vit_api.web.uploads import Uploads


class DecoderAndEncoder(Decoder, FrameDecoder, Encoder, Protocol):
    """The hooks of the LitAPI that run in an HTTP process."""


@dataclass(frozen=True)
class _Core:
    """The parts that run in the background of an HTTP process, as well as on requests."""

    classifier: Classifier
    frames: FrameClassifier
    inference: InferenceClient
    flights: SharedFlights
    redis: RedisTier | None
    redis_counts: RedisCounts | None
    tracing: Tracing | None
    decisions: DecisionLog | None

    async def start(self) -> None:
        self.inference.start()
        self.flights.start()
        self.classifier.start()
        for part in (self.redis, self.redis_counts):
            if part is not None:
                part.start()
        if self.decisions is not None:
            self.decisions.start()
            # Blocked since the fork, as without a handler it would end the process.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.decisions.reopen)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])

    async def stop(self) -> None:
        self.classifier.stop()
        self.flights.stop()
        self.inference.stop()
        for part in (self.redis, self.redis_counts):
            if part is not None:
                await part.stop()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        if self.decisions is not None:
            await asyncio.to_thread(self.decisions.close)


def build_application(shared: Shared, lit_api: DecoderAndEncoder, number: int) -> WebApplication:
    """Return the application of an HTTP process. To be called in that process.

    Args:
        shared: What it shares with the other processes.
        lit_api: Decodes uploads and renders predictions.
        number: The number of the process.
    """
    settings = shared.settings
    metrics_writer = shared.metrics_board.metrics_writer(f"http-{number}")
    core = _build_core(shared, lit_api, number, metrics_writer)
    digests = settings.key_digests
    rate_limits = None
    if shared.budgets is not None:
        limiter = RateLimiter(shared.budgets, number, core.redis_counts)
        rate_limits = RateLimits(limiter, settings.rates)
    observers: list[Observer] = [RequestMetrics(metrics_writer), _prediction_metrics(shared, metrics_writer)]
    if settings.access_log:
        observers.append(AccessLog(has_user_agent=settings.access_log_user_agent))
    if core.tracing is not None:
        observers.append(core.tracing)
    if core.decisions is not None:
        observers.append(core.decisions)
    protocols = [route for protocol in _protocols(shared, lit_api, core) for route in protocol.routes()]
    if core.tracing is not None:
        core.tracing.name_routes(protocols)
    return create_app(
        [*protocols, *_operator_routes(shared, core)],
        observers,
        start=core.start,
        stop=core.stop,
        request_limits=RequestLimits(
            max_pending_bytes=settings.max_pending_bytes,
            request_timeout_s=settings.request_timeout_s,
        ),
        keys=KeyCheck(digests, has_public_metrics=settings.metrics_public) if digests else None,
        rate_limits=rate_limits,
        cors_origins=settings.allowed_origins,
        addresses=ClientAddresses(settings.trusted_networks),
        work=BodyWork(core.inference.turns),
    )


def build_door(shared: Shared, application: WebApplication, number: int) -> functools.partial[Door]:
    """Return what makes the protocol of each connection, for `uvicorn.Config(http=...)`.

    Args:
        shared: What the process shares with others.
        application: Its application.
        number: Its number.
    """
    settings = shared.settings
    limits = DoorLimits(
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        keep_alive_s=settings.keep_alive_s,
        max_connections=max_connections(),
    )
    evicted = shared.metrics_board.metrics_writer(f"http-{number}").counter(metrics.EVICTED)
    connections = Connections(limits, shared.worker_board.is_draining, evicted.add)
    return functools.partial(Door, application.entry, connections, DateHeader(), HeadCache())


def _build_core(shared: Shared, decoder: DecoderAndEncoder, number: int, metrics_writer: MetricsWriter) -> _Core:
    settings = shared.settings
    tally = CacheTally(shared.cache_board, number)
    inference = InferenceClient(
        decoder,
        OwnerSlots(shared.table, number),
        shared.worker_board,
        shared.requests,
        shared.answers[number],
        metrics_writer=metrics_writer,
        decode_threads=settings.decoded_at_once,
        max_decode_bytes=settings.max_decode_bytes,
    )
    redis = redis_counts = None
    if settings.redis_url is not None:
        url = settings.redis_url.get_secret_value()
        classes, name = len(shared.checkpoint.labels), shared.checkpoint.name
        redis = RedisTier(url, namespace=name, classes=classes, ttl_s=settings.cache_ttl_s, tally=tally)
        redis_counts = None if shared.budgets is None else RedisCounts(url)
    cache, long_cache = _caches(shared, number, tally)
    parts = ALL_CLASSES if shared.needs_all_classes else 0
    flights = SharedFlights(ProcessFlights(shared.flight_board, number))
    identity = functools.partial(_identity, shared)
    look_up_s = (metrics_writer.counter(metrics.LOOK_UP, "hit"), metrics_writer.counter(metrics.LOOK_UP, "miss"))
    classifier = Classifier(
        inference,
        tally,
        identity,
        cache,
        redis,
        flights=flights,
        look_up_s=look_up_s,
        long_cache=long_cache,
        parts=parts,
    )
    frames = FrameClassifier(
        decoder,
        inference,
        tally,
        identity,
        cache=cache,
        shared=redis,
        flights=flights,
        long_cache=long_cache,
        parts=parts,
    )
    tracing = Tracing() if settings.traces else None
    decisions = _decision_log(shared, metrics_writer)
    return _Core(classifier, frames, inference, flights, redis, redis_counts, tracing, decisions)


def _prediction_metrics(shared: Shared, metrics_writer: MetricsWriter) -> PredictionMetrics:
    flagged = None if shared.thresholds is None else FlaggedLabels(shared.checkpoint, shared.thresholds)
    return PredictionMetrics(metrics_writer, shared.checkpoint, flagged)


def _decision_log(shared: Shared, metrics_writer: MetricsWriter) -> DecisionLog | None:
    settings = shared.settings
    if settings.decision_log is None:
        return None
    target = settings.decision_log.get_secret_value()
    renderer = DecisionRenderer(DecisionContext(shared.checkpoint, shared.checkpoint_identity, shared.thresholds))
    dropped = [metrics_writer.counter(metrics.DECISIONS_DROPPED, cause) for cause in ("full", "refused", "stopped")]
    counters = DecisionCounters(
        metrics_writer.counter(metrics.DECISIONS_WRITTEN), metrics_writer.counter(metrics.DECISION_FAILURES), *dropped
    )
    is_file = settings.has_decision_log_file
    return DecisionLog(
        FileSink(target) if is_file else UrlSink(target),
        renderer.lines if is_file else renderer.events,
        counters,
        sample=settings.decision_sample,
    )


def _caches(
    shared: Shared, number: int, tally: CacheTally
) -> tuple[AnswerCache[CachedPrediction], AnswerCache[CachedPrediction]] | tuple[None, None]:
    """Return the caches of a process: of answers with the most probable classes, and of long ones."""
    if shared.answer_table is None or shared.long_table is None:
        return None, None
    size, ttl_s = shared.settings.cache_size, shared.settings.cache_ttl_s
    short = AnswerCache[CachedPrediction](size, ttl_s, tally, SharedAnswers(shared.answer_table, number, tally))
    long = AnswerCache[CachedPrediction](
        size,
        ttl_s,
        tally,
        SharedAnswers(shared.long_table, number, tally),
        max_bytes=MAX_LONG_CACHE_BYTES,
        size_of=lambda cached: cached.size,
        gauge="long_entries",
    )
    return short, long


def _identity(shared: Shared) -> str:
    """Return what determines an answer besides the upload."""
    dtypes = shared.worker_board.dtypes()
    if not dtypes:
        raise NotReady("The model is still loading. Retry shortly.")
    exact = shared.settings.exact_decode
    decoding = ["exact" if exact else "draft", resizer_name(exact=exact), shared.settings.background]
    return json.dumps([__version__, shared.checkpoint.name, shared.checkpoint_identity, dtypes, decoding])


def _protocols(shared: Shared, encoder: Encoder, core: _Core) -> Sequence[ProtocolRoutes]:
    settings, checkpoint = shared.settings, shared.checkpoint
    uploads = Uploads(
        max_bytes=settings.max_upload_bytes,
        max_count=MAX_IMAGES_PER_REQUEST,
        max_total_bytes=settings.max_batch_upload_bytes,
    )
    return [
        PredictRoutes(
            core.classifier,
            encoder,
            uploads,
            frames=core.frames,
            model_name=checkpoint.name,
            classes=len(checkpoint.labels),
            is_complete=functools.partial(is_complete, checkpoint),
        ),
        HuggingFaceRoutes(
            core.classifier,
            uploads,
            checkpoint.labels,
            has_sigmoid=checkpoint.has_sigmoid,
            device=shared.devices[0],
        ),
        ModerationRoutes(
            core.classifier,
            uploads,
            model_name=checkpoint.name,
            labels=checkpoint.labels,
            has_sigmoid=checkpoint.has_sigmoid,
            categories=shared.categories,
            thresholds=shared.thresholds,
        ),
        EmbeddingRoutes(core.classifier, uploads, model_name=checkpoint.name),
        _open_inference(shared, core.classifier),
    ]


def _open_inference(shared: Shared, classifier: Classifier) -> OpenInferenceRoutes:
    settings, checkpoint = shared.settings, shared.checkpoint
    inputs = Inputs(
        checkpoint.preprocessing, max_images=MAX_IMAGES_PER_REQUEST, max_upload_bytes=settings.max_upload_bytes
    )
    outputs = Outputs(checkpoint.name, checkpoint.labels, has_sigmoid=checkpoint.has_sigmoid)
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
    cache_board = shared.cache_board if settings.cache_size else None
    return OpenInferenceRoutes(
        classifier,
        inputs,
        outputs,
        model,
        statistics=Statistics(checkpoint.name, shared.metrics_board, shared.batch_stats, cache_board),
        worker_board=shared.worker_board,
        max_body_bytes=settings.max_batch_upload_bytes,
    )


def _operator_routes(shared: Shared, core: _Core) -> list[Route]:
    """Return the routes of the page, health, cache and metrics."""
    settings, checkpoint = shared.settings, shared.checkpoint
    has_redis = core.redis is not None
    # The name of the model as clients know it: the setting may be a path of this machine.
    shown = settings.model_dump(mode="json") | {"model": checkpoint.name}

    def cache() -> CacheInfo | None:
        table = shared.answer_table
        return None if table is None else cache_info(shared.cache_board, table, has_redis=has_redis)

    health = health_router(checkpoint.name, shared.worker_board, shared.devices)
    info = info_router(
        checkpoint,
        shared.worker_board,
        shared.table,
        resizer=resizer_name(exact=settings.exact_decode),
        settings=shown,
        thresholds=shared.thresholds,
        cache_info=cache,
    )
    key = settings.operator_key
    clear = cache_router(
        shared.cache_board, None if key is None else key.get_secret_value(), core.redis.clear if core.redis else None
    )
    sources = Sources(
        checkpoint,
        shared.metrics_board,
        shared.worker_board,
        shared.table,
        shared.cache_board,
        shared.answer_table,
        has_redis=has_redis,
    )
    routers = (page_router(), health, info, clear, metrics_router(MetricsCollector(sources)))
    return [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
