"""The composition of an HTTP process: the only place where the parts of the HTTP half are created and connected."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.routing import APIRoute

from vit_api import metrics
from vit_api.access.client_address import ClientAddresses
from vit_api.access.rate_limiter import RateLimiter
from vit_api.access.redis_counts import RedisCounts
from vit_api.ipc.channel import Channel
from vit_api.ipc.flight_board import ProcessFlights
from vit_api.ipc.metrics_board import MetricsWriter
from vit_api.shared.server import Shared
from vit_api.web.admission.keys import KeyCheck
from vit_api.web.admission.rate_limits import RateLimits
from vit_api.web.application import WebApplication, create_app
from vit_api.web.bodies import BodyWork
from vit_api.web.core.decode_turns import DecodeTurns
from vit_api.web.core.shared_flights import SharedFlights
from vit_api.web.deployment import ProcessParts
from vit_api.web.dispatch import MODEL, MODEL_VERSION
from vit_api.web.door.answers import DateHeader
from vit_api.web.door.connections import Connections
from vit_api.web.door.head_cache import HeadCache
from vit_api.web.door.known_requests import KnownRequests, LoopTurn
from vit_api.web.door.limits import DoorLimits, max_connections
from vit_api.web.door.protocol import Door
from vit_api.web.live import LiveDeployments
from vit_api.web.mirrors import Mirrors
from vit_api.web.observers.access_log import AccessLog
from vit_api.web.observers.decisions.file_sink import FileSink
from vit_api.web.observers.decisions.log import DecisionCounters, DecisionLog
from vit_api.web.observers.decisions.url_sink import UrlSink
from vit_api.web.observers.exchange import Observer
from vit_api.web.observers.mirroring import ByMirrored
from vit_api.web.observers.tracing import Tracing
from vit_api.web.operations.cache import cache_router
from vit_api.web.operations.collector import MetricsCollector, sources_of
from vit_api.web.operations.health import health_router
from vit_api.web.operations.info import info_router, package_versions
from vit_api.web.operations.metrics import metrics_router
from vit_api.web.operations.repository import repository_router
from vit_api.web.page.files import page_router
from vit_api.web.protocol_routes import routes_of_one, routes_of_several
from vit_api.web.protocols.predict import MAX_IMAGES_PER_REQUEST
from vit_api.web.requests import RequestLimits
from vit_api.web.routes import Route
from vit_api.web.served import DecoderOf, ServedDeployments
from vit_api.web.uploads import Uploads

if TYPE_CHECKING:
    from vit_api.web.core.redis_tier import RedisTier


@dataclass(frozen=True)
class _Core:
    """The parts that run in the background of an HTTP process, as well as on requests."""

    served: ServedDeployments
    turns: DecodeTurns
    flights: SharedFlights
    redis_counts: RedisCounts | None
    tracing: Tracing | None
    decisions: DecisionLog | None
    mirrors: Mirrors | None
    live: LiveDeployments | None

    async def start(self) -> None:
        self.turns.start()
        self.flights.start()
        for deployment in self.served.cores.values():
            deployment.start()
        if self.live is not None:
            self.live.start()
        if self.redis_counts is not None:
            self.redis_counts.start()
        if self.decisions is not None:
            self.decisions.start()
            # Blocked since the fork, as without a handler it would end the process.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.decisions.reopen)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])

    async def stop(self) -> None:
        self.flights.stop()
        if self.live is not None:
            self.live.stop()
        if self.mirrors is not None:
            self.mirrors.stop()
        for deployment in self.served.cores.values():
            await deployment.stop()
        self.turns.stop()
        if self.redis_counts is not None:
            await self.redis_counts.stop()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        if self.decisions is not None:
            await asyncio.to_thread(self.decisions.close)


def prepare(*, has_redis: bool = False) -> None:
    """Do once what each HTTP process would do; to be called in the process that they are forked from.

    Args:
        has_redis: Whether the caches have a tier beyond this server.
    """
    if has_redis:
        import vit_api.web.core.redis_tier  # noqa: F401
    package_versions()
    router = APIRouter()

    @router.get("/")
    def _() -> str:  # FastAPI imports a lot with its first route
        raise AssertionError("this route is not served")


def build_application(
    shared: Shared, decoder_of: DecoderOf, number: int, channel: Channel | None = None
) -> WebApplication:
    """Return the application of an HTTP process. To be called in that process.

    Args:
        shared: What it shares with the other processes.
        decoder_of: Returns what decodes uploads and renders predictions for a deployment.
        number: The number of the process.
        channel: To the main process, which loads and unloads models; None: they stay as they are.
    """
    settings = shared.settings
    parts = _parts(shared, number)
    served = ServedDeployments(shared, decoder_of, parts)
    live = None if channel is None else LiveDeployments(shared, served, channel)
    core = _build_core(shared, served, parts, live)
    digests = settings.key_digests
    rate_limits = None
    if shared.budgets is not None:
        limiter = RateLimiter(shared.budgets, number, core.redis_counts)
        rate_limits = RateLimits(limiter, settings.rates)

    def routes() -> list[Route]:
        if shared.has_several:
            others = tuple if live is None else live.others
            protocols = routes_of_several(shared, served.handlers(), parts.uploads, served.in_flight, others)
        else:
            protocols = routes_of_one(shared, served.handlers(), parts.uploads)
        if core.tracing is not None:
            core.tracing.name_routes(protocols)
        return [*protocols, *_operator_routes(shared, served, live)]

    application = create_app(
        routes(),
        _observers(shared, served, core, number),
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
    if live is not None:
        assert core.mirrors is not None
        live.connect_mirrors = core.mirrors.connect
        live.prepare = lambda: application.prepare(routes())
    return application


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
    is_draining = shared.worker_board.is_draining
    if settings.max_models is not None:  # then the workers of that board may be unloaded
        is_draining = shared.is_draining
    connections = Connections(limits, is_draining, evicted.add)
    known = KnownRequests(LoopTurn(lambda: connections.is_draining))
    return functools.partial(Door, application.entry, connections, DateHeader(), HeadCache(), known)


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


def _build_core(shared: Shared, served: ServedDeployments, parts: ProcessParts, live: LiveDeployments | None) -> _Core:
    settings = shared.settings
    redis_counts = None
    if settings.redis_url is not None and shared.budgets is not None:
        redis_counts = RedisCounts(settings.redis_url.get_secret_value())
    tracing = Tracing() if settings.traces else None
    decisions = _decision_log(shared, served, shared.metrics_board.metrics_writer(f"http-{parts.number}"))
    mirrors = Mirrors(shared, served, parts.number, decisions) if shared.mirrors or live is not None else None
    return _Core(served, parts.turns, parts.flights, redis_counts, tracing, decisions, mirrors, live)


def _observers(shared: Shared, served: ServedDeployments, core: _Core, number: int) -> list[Observer]:
    observers = served.observers(shared.metrics_board.metrics_writer(f"http-{number}"))
    if shared.settings.access_log:
        observers.append(AccessLog(has_user_agent=shared.settings.access_log_user_agent))
    if core.tracing is not None:
        observers.append(core.tracing)
    if core.decisions is not None:
        observers.append(core.decisions)
    if core.mirrors is not None:
        observers.append(ByMirrored(core.mirrors.observers))
    return observers


def _decision_log(shared: Shared, served: ServedDeployments, metrics_writer: MetricsWriter) -> DecisionLog | None:
    settings = shared.settings
    if settings.decision_log is None:
        return None
    target = settings.decision_log.get_secret_value()
    dropped = [metrics_writer.counter(metrics.DECISIONS_DROPPED, cause) for cause in ("full", "refused", "stopped")]
    counters = DecisionCounters(
        metrics_writer.counter(metrics.DECISIONS_WRITTEN), metrics_writer.counter(metrics.DECISION_FAILURES), *dropped
    )
    is_file = settings.has_decision_log_file
    return DecisionLog(
        FileSink(target) if is_file else UrlSink(target),
        served.render_lines if is_file else served.render_events,
        counters,
        sample=settings.decision_sample,
    )


def _operator_routes(shared: Shared, served: ServedDeployments, live: LiveDeployments | None) -> list[Route]:
    """Return the routes of the page, health, cache and metrics."""
    settings = shared.settings
    key = None if settings.operator_key is None else settings.operator_key.get_secret_value()
    tiers = served.redis_tiers()
    clear = cache_router(
        [one.cache_board for one in shared.deployments],
        key,
        functools.partial(_clear_redis, tiers) if tiers else None,
    )
    sources = sources_of(shared, has_redis=bool(tiers))
    info = info_router(shared, has_redis=bool(tiers))
    routers = [page_router(), health_router(shared), info, clear, metrics_router(MetricsCollector(sources))]
    if live is not None:
        routers.append(repository_router(live, key))
    return [route for router in routers for route in router.routes if isinstance(route, APIRoute)]


async def _clear_redis(tiers: Sequence[RedisTier]) -> int:
    return sum([await tier.clear() for tier in tiers])
