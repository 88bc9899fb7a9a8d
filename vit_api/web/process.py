"""The composition of an HTTP process: the only place where the parts of the HTTP half are created and connected."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastapi.routing import APIRoute

from vit_api import metrics
from vit_api.access.client_address import ClientAddresses
from vit_api.access.rate_limiter import RateLimiter
from vit_api.access.redis_counts import RedisCounts
from vit_api.ipc.flight_board import ProcessFlights
from vit_api.ipc.metrics_board import MetricsWriter
from vit_api.ipc.slots import OwnerSlots
from vit_api.shared import Shared
from vit_api.shared_deployment import SharedDeployment
from vit_api.web.admission.keys import KeyCheck
from vit_api.web.admission.rate_limits import RateLimits
from vit_api.web.application import WebApplication, create_app
from vit_api.web.bodies import BodyWork
from vit_api.web.core.decode_turns import DecodeTurns
from vit_api.web.core.redis_tier import RedisTier
from vit_api.web.core.shared_flights import SharedFlights
from vit_api.web.deployment import DecoderAndEncoder, DeploymentCore, ProcessParts, build_handlers
from vit_api.web.dispatch import MODEL, MODEL_VERSION
from vit_api.web.door.answers import DateHeader
from vit_api.web.door.connections import Connections
from vit_api.web.door.head_cache import HeadCache
from vit_api.web.door.limits import DoorLimits, max_connections
from vit_api.web.door.protocol import Door
from vit_api.web.observers.access_log import AccessLog
from vit_api.web.observers.by_deployment import ByDeployment
from vit_api.web.observers.decisions.decision import Answered, DecisionContext, DecisionRenderer
from vit_api.web.observers.decisions.file_sink import FileSink
from vit_api.web.observers.decisions.log import DecisionCounters, DecisionLog
from vit_api.web.observers.decisions.url_sink import UrlSink
from vit_api.web.observers.exchange import Observer
from vit_api.web.observers.mirroring import ByMirrored, Mirroring, ShadowCounts, Side
from vit_api.web.observers.prediction_metrics import FlaggedLabels, PredictionMetrics
from vit_api.web.observers.request_metrics import RequestMetrics
from vit_api.web.observers.tracing import Tracing
from vit_api.web.operations.cache import cache_router
from vit_api.web.operations.collector import MetricsCollector, sources_of
from vit_api.web.operations.health import health_router
from vit_api.web.operations.info import info_router
from vit_api.web.operations.metrics import metrics_router
from vit_api.web.page.files import page_router
from vit_api.web.protocol_routes import routes_of_one, routes_of_several
from vit_api.web.protocols.predict import MAX_IMAGES_PER_REQUEST
from vit_api.web.requests import RequestLimits
from vit_api.web.routes import Route
from vit_api.web.uploads import Uploads


@dataclass(frozen=True)
class _Core:
    """The parts that run in the background of an HTTP process, as well as on requests."""

    deployments: Sequence[DeploymentCore]
    turns: DecodeTurns
    flights: SharedFlights
    redis_counts: RedisCounts | None
    tracing: Tracing | None
    decisions: DecisionLog | None

    async def start(self) -> None:
        self.turns.start()
        self.flights.start()
        for deployment in self.deployments:
            deployment.start()
        if self.redis_counts is not None:
            self.redis_counts.start()
        if self.decisions is not None:
            self.decisions.start()
            # Blocked since the fork, as without a handler it would end the process.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.decisions.reopen)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])

    async def stop(self) -> None:
        self.flights.stop()
        for deployment in self.deployments:
            await deployment.stop()
        self.turns.stop()
        if self.redis_counts is not None:
            await self.redis_counts.stop()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        if self.decisions is not None:
            await asyncio.to_thread(self.decisions.close)


def build_application(shared: Shared, lit_apis: Sequence[DecoderAndEncoder], number: int) -> WebApplication:
    """Return the application of an HTTP process. To be called in that process.

    Args:
        shared: What it shares with the other processes.
        lit_apis: Decode uploads and render predictions, one for each deployment.
        number: The number of the process.
    """
    settings = shared.settings
    parts = _parts(shared, number)
    core = _build_core(shared, lit_apis, parts)
    digests = settings.key_digests
    rate_limits = None
    if shared.budgets is not None:
        limiter = RateLimiter(shared.budgets, number, core.redis_counts)
        rate_limits = RateLimits(limiter, settings.rates)
    observers = _observers(shared, core, number)
    handlers = [
        build_handlers(shared, one, its_core, lit_api, parts)
        for one, its_core, lit_api in zip(shared.deployments, core.deployments, lit_apis, strict=True)
    ]
    routes = routes_of_several if shared.has_several else routes_of_one
    protocols = routes(shared, handlers, parts.uploads)
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
        exposed_headers=[name.decode() for name in (MODEL, MODEL_VERSION)] if shared.has_several else (),
        addresses=ClientAddresses(settings.trusted_networks),
        work=BodyWork(parts.turns),
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


def _parts(shared: Shared, number: int) -> ProcessParts:
    settings = shared.settings
    return ProcessParts(
        number,
        DecodeTurns(settings.decoded_at_once, settings.max_decode_bytes),
        SharedFlights(ProcessFlights(shared.flight_board, number)),
        Uploads(
            max_bytes=settings.max_upload_bytes,
            max_count=MAX_IMAGES_PER_REQUEST,
            max_total_bytes=settings.max_batch_upload_bytes,
        ),
    )


def _build_core(shared: Shared, decoders: Sequence[DecoderAndEncoder], parts: ProcessParts) -> _Core:
    settings = shared.settings
    cores: list[DeploymentCore] = []
    slots: OwnerSlots | None = None
    for deployment, decoder in zip(shared.deployments, decoders, strict=True):
        slots = OwnerSlots(deployment.table, parts.number, slots)
        cores.append(DeploymentCore(shared, deployment, decoder, parts, slots))
    redis_counts = None
    if settings.redis_url is not None and shared.budgets is not None:
        redis_counts = RedisCounts(settings.redis_url.get_secret_value())
    tracing = Tracing() if settings.traces else None
    decisions = _decision_log(shared, shared.metrics_board.metrics_writer(f"http-{parts.number}"))
    return _Core(cores, parts.turns, parts.flights, redis_counts, tracing, decisions)


def _observers(shared: Shared, core: _Core, number: int) -> list[Observer]:
    """Return what records each request; with several models, the metrics of each have an observer of their own."""
    observers: list[Observer] = [*_metrics_of(shared, number)]
    if shared.settings.access_log:
        observers.append(AccessLog(has_user_agent=shared.settings.access_log_user_agent))
    if core.tracing is not None:
        observers.append(core.tracing)
    if core.decisions is not None:
        observers.append(core.decisions)
    if shared.mirrors:
        observers.append(_mirroring(shared, core, number))
    return observers


def _mirroring(shared: Shared, core: _Core, number: int) -> ByMirrored:
    """Connect each mirror with the versions that it mirrors, and return what sends it their images."""
    observers: dict[int, Mirroring] = {}
    for target in set(shared.mirrors.values()):
        of = [source for source, mirror in shared.mirrors.items() if mirror == target]
        counts = ShadowCounts(shared.deployments[target].metrics_board.metrics_writer(f"http-{number}"))
        cores = [core.deployments[source] for source in of]
        mirror = core.deployments[target].become_mirror(cores, shared.settings.request_timeout_s, counts.skip)
        sides = {one: _side_of(shared.deployments[one]) for one in (target, *of)}
        for source in of:
            observers[source] = Mirroring(mirror, sides[source], sides[target], counts, core.decisions)
    return ByMirrored(observers)


def _side_of(deployment: SharedDeployment) -> Side:
    return Side(deployment.number, deployment.spec.version, deployment.checkpoint)


def _metrics_of(shared: Shared, number: int) -> list[Observer]:
    process = f"http-{number}"
    writers = [one.metrics_board.metrics_writer(process) for one in shared.deployments]
    requests = [RequestMetrics(writer) for writer in writers]
    predictions = [_prediction_metrics(*one) for one in zip(shared.deployments, writers, strict=True)]
    if not shared.has_several:
        return [*requests, *predictions]
    other = RequestMetrics(shared.metrics_board.metrics_writer(process))
    return [ByDeployment(requests, other), ByDeployment(predictions)]


def _prediction_metrics(deployment: SharedDeployment, metrics_writer: MetricsWriter) -> PredictionMetrics:
    thresholds = deployment.thresholds
    flagged = None if thresholds is None else FlaggedLabels(deployment.checkpoint, thresholds)
    return PredictionMetrics(metrics_writer, deployment.checkpoint, flagged)


def _decision_log(shared: Shared, metrics_writer: MetricsWriter) -> DecisionLog | None:
    settings = shared.settings
    if settings.decision_log is None:
        return None
    target = settings.decision_log.get_secret_value()
    renderers = [DecisionRenderer(_decision_context(shared, one)) for one in shared.deployments]
    dropped = [metrics_writer.counter(metrics.DECISIONS_DROPPED, cause) for cause in ("full", "refused", "stopped")]
    counters = DecisionCounters(
        metrics_writer.counter(metrics.DECISIONS_WRITTEN), metrics_writer.counter(metrics.DECISION_FAILURES), *dropped
    )
    is_file = settings.has_decision_log_file
    return DecisionLog(
        FileSink(target) if is_file else UrlSink(target),
        functools.partial(_render_lines if is_file else _render_events, renderers),
        counters,
        sample=settings.decision_sample,
    )


def _decision_context(shared: Shared, one: SharedDeployment) -> DecisionContext:
    version = one.spec.version if shared.has_several else None
    return DecisionContext(one.checkpoint, one.checkpoint_identity, one.thresholds, version)


def _render_lines(renderers: Sequence[DecisionRenderer], answered: Answered) -> Iterator[bytes]:
    return renderers[answered.deployment].lines(answered)


def _render_events(renderers: Sequence[DecisionRenderer], answered: Answered) -> Iterator[bytes]:
    return renderers[answered.deployment].events(answered)


def _operator_routes(shared: Shared, core: _Core) -> list[Route]:
    """Return the routes of the page, health, cache and metrics."""
    settings = shared.settings
    key = settings.operator_key
    tiers = [one.redis for one in core.deployments if one.redis is not None]
    clear = cache_router(
        [one.cache_board for one in shared.deployments],
        None if key is None else key.get_secret_value(),
        functools.partial(_clear_redis, tiers) if tiers else None,
    )
    sources = sources_of(shared, has_redis=bool(tiers))
    info = info_router(shared, has_redis=bool(tiers))
    routers = (page_router(), health_router(shared), info, clear, metrics_router(MetricsCollector(sources)))
    return [route for router in routers for route in router.routes if isinstance(route, APIRoute)]


async def _clear_redis(tiers: Sequence[RedisTier]) -> int:
    return sum([await tier.clear() for tier in tiers])
