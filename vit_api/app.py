"""The composition root: the only place where the server's parts are made and joined."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import socket
import sys
from collections.abc import Callable

from fastapi import APIRouter

from vit_api import __version__, metrics
from vit_api.batching import BatchingPolicy
from vit_api.cache import AnswerCache
from vit_api.cache_board import CacheBoard, CacheTally
from vit_api.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from vit_api.classifier import Classifier, Known
from vit_api.collector import MetricsCollector, Sources
from vit_api.errors import NotReady
from vit_api.inference import InferenceClient
from vit_api.listeners import Listeners
from vit_api.lit_api import ViTAPI
from vit_api.lit_server import ServeHttp, ViTServer, choose_devices
from vit_api.logs import configure_logging
from vit_api.loop import SlotLoop
from vit_api.metrics_board import MetricsBoard
from vit_api.processes import serve_http
from vit_api.records import RecordPipe
from vit_api.recovery import Recovery
from vit_api.redis_tier import RedisTier
from vit_api.routes.access_log import AccessLog
from vit_api.routes.api import create_app
from vit_api.routes.cache import cache_info, cache_router
from vit_api.routes.exchange import Observer
from vit_api.routes.front import Front
from vit_api.routes.metrics import metrics_router
from vit_api.routes.operations import operations_router
from vit_api.routes.predict import PredictRoutes
from vit_api.routes.request_metrics import RequestMetrics
from vit_api.routes.tracing import Tracing, is_installed
from vit_api.routes.uploads import Uploads
from vit_api.schemas import CacheInfo
from vit_api.settings import Settings, main_settings
from vit_api.slots import SlotRange, SlotTable
from vit_api.supervisor import StartProcess, Supervisor
from vit_api.workers import WorkerBoard

logger = logging.getLogger(__name__)

_MAX_IMAGES_PER_REQUEST = 32


class Application:
    """The server's parts, shared by all its processes.

    Args:
        settings: The server's settings.
        checkpoint: The model to serve.
        devices: Where it runs.
        lit_api_class: What runs it.
        policy_class: What says when a batch goes.
    """

    def __init__(
        self,
        settings: Settings,
        checkpoint: Checkpoint,
        devices: list[str],
        lit_api_class: type[ViTAPI] = ViTAPI,
        policy_class: type[BatchingPolicy] = BatchingPolicy,
    ) -> None:
        self.settings = settings
        self._lit_api_class = lit_api_class
        self._policy_class = policy_class
        self.checkpoint = checkpoint
        self.devices = devices
        slots = settings.slots_per_process
        self.table = SlotTable(settings.api_servers, slots, checkpoint.preprocessing.pixel_shape)
        self.board = WorkerBoard(len(devices) * settings.workers_per_device)
        self.cache_board = CacheBoard(settings.api_servers)
        names = ["main", *map("http-{}".format, range(settings.api_servers))]
        names += map("worker-{}".format, range(self.board.workers))
        self.counts = MetricsBoard(names, metrics.COUNTED)
        self._meter = self.counts.meter("main")
        # Within one server all have the same; what servers share needs to tell checkpoints apart.
        self.checkpoint_identity = checkpoint.identity() if settings.redis_url is not None else ""
        self.requests = RecordPipe.for_requests(len(self.table))
        self.answers = [RecordPipe.for_answers(slots) for _ in range(settings.api_servers)]
        self.lit_api = self._lit_api()

    def _lit_api(self) -> ViTAPI:
        settings = self.settings
        policy = self._policy_class(settings.max_batch_size, settings.max_wait_s)
        return self._lit_api_class(
            self.checkpoint,
            dtype=settings.dtype,
            max_image_side=settings.max_image_side,
            exact_decode=settings.exact_decode,
            cpu_threads=settings.cpu_threads,
            max_batch_size=settings.max_batch_size,
            batch_timeout=settings.max_wait_s,
            loop=SlotLoop(self.table, self.board, self.requests, self.answers, policy, counts=self.counts),
        )

    def server(self) -> ViTServer:
        """Return the LitServe server that runs all this."""
        return ViTServer(
            self.lit_api,
            devices=self.devices,
            workers_per_device=self.settings.workers_per_device,
            configure_logging=_logging(self.settings),
            serve_http=self._serve_http(os.getpid()),
        )

    def supervisor(self, start_http: StartProcess, start_worker: StartProcess) -> Supervisor:
        """Return what keeps the processes alive."""
        return Supervisor(
            start_http,
            self.settings.api_servers,
            start_worker,
            board=self.board,
            table=self.table,
            recovery=Recovery(self.table, self.requests, self.answers),
            http_restarts=self._meter.count(metrics.HTTP_RESTARTS),
            worker_stall_s=self.settings.worker_stall_s,
            drain_delay_s=self.settings.drain_delay_s,
            drain_timeout_s=self.settings.drain_timeout_s,
        )

    def _serve_http(self, parent: int) -> ServeHttp:
        def serve(number: int, listener: socket.socket) -> None:
            app = self.http_app(number)
            serve_http(app, listener, parent=parent, stop_timeout_s=self.settings.drain_timeout_s)

        return serve

    def http_app(self, number: int) -> Front:
        """Return the ASGI application of the HTTP process of this number."""
        settings = self.settings
        tally = CacheTally(self.cache_board, number)
        meter = self.counts.meter(f"http-{number}")
        inference = InferenceClient(
            self.lit_api,
            SlotRange(self.table, number),
            self.board,
            self.requests,
            self.answers[number],
            meter=meter,
            decode_threads=settings.decode_threads,
        )
        cache = AnswerCache[Known](settings.cache_size, settings.cache_ttl_s, tally) if settings.cache_size else None
        redis = self._redis_tier(tally)
        classifier = Classifier(inference, tally, self._identity, cache, redis)
        uploads = Uploads(
            max_bytes=settings.max_upload_bytes,
            max_count=_MAX_IMAGES_PER_REQUEST,
            max_total_bytes=settings.max_batch_upload_bytes,
        )
        predict = PredictRoutes(
            classifier,
            self.lit_api,
            uploads,
            model_name=self.checkpoint.name,
            request_timeout_s=settings.request_timeout_s,
            body_timeout_s=settings.body_timeout_s,
        )

        async def start() -> None:
            inference.start()
            classifier.start()
            if redis is not None:
                redis.start()

        tracing = Tracing() if settings.traces else None

        async def stop() -> None:
            classifier.stop()
            inference.stop()
            if redis is not None:
                await redis.stop()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

        observers: list[Observer] = [RequestMetrics(meter)]
        if settings.access_log:
            observers.append(AccessLog())
        if tracing is not None:
            observers.append(tracing)
        operators = [self._operations_router(), self._cache_router(redis), self._metrics_router()]
        return create_app(
            predict,
            operators,
            observers,
            start=start,
            stop=stop,
            max_pending_bytes=settings.max_pending_bytes,
            is_draining=self.board.is_draining,
        )

    def _redis_tier(self, tally: CacheTally) -> RedisTier | None:
        if self.settings.redis_url is None:
            return None
        return RedisTier(
            self.settings.redis_url.get_secret_value(),
            namespace=self.checkpoint.name,
            classes=len(self.checkpoint.labels),
            ttl_s=self.settings.cache_ttl_s,
            tally=tally,
        )

    def _identity(self) -> str:
        """Return what else than the upload determines an answer."""
        dtypes = self.board.dtypes()
        if not dtypes:
            raise NotReady("the model is still loading; try again soon")
        decoding = "exact" if self.settings.exact_decode else "draft"
        return json.dumps([__version__, self.checkpoint.name, self.checkpoint_identity, dtypes, decoding])

    def _operations_router(self) -> APIRouter:
        settings = self.settings
        # The model as clients know it: the setting may be a path of this machine.
        shown = settings.model_dump(mode="json") | {"model": self.checkpoint.name}

        def cache() -> CacheInfo | None:
            has_redis = settings.redis_url is not None
            return cache_info(self.cache_board, has_redis=has_redis) if settings.cache_size else None

        return operations_router(
            self.checkpoint, self.board, self.table, self.devices, settings=shown, cache_info=cache
        )

    def _metrics_router(self) -> APIRouter:
        cache = self.cache_board if self.settings.cache_size else None
        sources = Sources(
            self.checkpoint, self.counts, self.board, self.table, cache, self.settings.redis_url is not None
        )
        return metrics_router(MetricsCollector(sources))

    def _cache_router(self, redis: RedisTier | None) -> APIRouter:
        key = self.settings.operator_key
        return cache_router(
            self.cache_board,
            None if key is None else key.get_secret_value(),
            None if redis is None else redis.clear,
        )


def _logging(settings: Settings) -> Callable[[], None]:
    return functools.partial(configure_logging, settings.log_level, settings.log_format)


def main(lit_api_class: type[ViTAPI] = ViTAPI, policy_class: type[BatchingPolicy] = BatchingPolicy) -> None:
    """Run the server with this process's settings; exit when it stops."""
    settings = main_settings()
    _logging(settings)()
    if settings.traces and not is_installed():
        sys.exit("error: VIT_API_TRACES needs more packages: pip install -r requirements-otel.txt")
    try:
        devices = choose_devices(settings.device)
        checkpoint = load_checkpoint(settings.model, settings.revision)
        listeners = Listeners(settings.host, settings.port, settings.api_servers)
    except (CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: can't listen on {settings.host}:{settings.port}: {error.strerror}")
    try:
        application = Application(settings, checkpoint, devices, lit_api_class, policy_class)
    except OSError as error:
        sys.exit(f"error: the system refuses a queue of this size ({error.strerror}); lower VIT_API_QUEUE_SIZE")
    logger.info(
        "serving %s on http://%s:%d with %d HTTP processes and %d workers on %s",
        *(checkpoint.name, settings.host, settings.port, settings.api_servers),
        *(application.board.workers, ", ".join(devices)),
    )
    sys.exit(application.server().run(listeners, application.supervisor))
