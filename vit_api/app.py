"""The composition of the main process and of the workers; `shared` has what all processes share.

The composition of an HTTP process is in `web.process`.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence

from vit_api import metrics
from vit_api.checkpoints.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from vit_api.decoding.resizing import resizer_name
from vit_api.deployments.saved import ModelState, ModelStateError
from vit_api.environment.cores import available_cores
from vit_api.environment.devices import choose_devices
from vit_api.environment.garbage import exempt_from_collection
from vit_api.environment.system import require_linux
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.worker_board import WorkerState
from vit_api.lit_api import ViTAPI, options_of
from vit_api.logs import configure_logging
from vit_api.processes.early import EarlyAnswers, Phase
from vit_api.processes.lifecycle import raise_descriptor_limit, serve_http
from vit_api.processes.lit_server import ServeHttp, StartWorker, ViTServer
from vit_api.processes.live_server import LiveServer
from vit_api.processes.recovery import Recovery
from vit_api.processes.refusal_log import RefusalLog, rejected
from vit_api.processes.service_manager import ServerStatus, ServiceManager
from vit_api.processes.signals import exit_on_signals, ignore_hangups
from vit_api.processes.supervisor import StartProcess, Supervisor, WorkerGroup
from vit_api.settings import ENV_PREFIX, Settings
from vit_api.shared.deployment import SettingError, SharedDeployment, check_deployable
from vit_api.shared.server import Shared
from vit_api.startup import StartingServer, begin
from vit_api.web.observers.tracing import is_installed
from vit_api.web.process import build_application, build_door, prepare
from vit_api.worker.batching import BatchingPolicy
from vit_api.worker.loop import SlotLoop

logger = logging.getLogger(__name__)

_READY = WorkerState.READY
_WORKER_IMPORTS = ("vit_api.lit_api", "vit_api.model.model", "vit_api.worker.loop")
"""Most of what a worker imports. It takes longer than loading a small model."""

_SUPERVISION_S = 15.0
"""By then, the supervisor has replaced an HTTP process that hangs."""


class Application:
    """A server.

    Args:
        shared: What its processes share.
        lit_api_class: Runs the model.
        policy_class: Decides when a batch is dispatched.
        early: Answers until the HTTP processes do; None if nothing does.
        state: Where models that are loaded while the server runs are kept for the next start; None: they are not.
    """

    def __init__(
        self,
        shared: Shared,
        lit_api_class: type[ViTAPI] = ViTAPI,
        policy_class: type[BatchingPolicy] = BatchingPolicy,
        early: EarlyAnswers | None = None,
        state: ModelState | None = None,
    ) -> None:
        self.shared = shared
        self._classes = lit_api_class, policy_class
        self._early = early
        self._settings = shared.settings
        self._metrics_writer = shared.metrics_board.metrics_writer("main")
        self._service_manager = ServiceManager(self._status)
        self._refusals = RefusalLog(functools.partial(rejected, *_metrics_boards(shared)))
        self._has_been_ready = False
        self._lit_apis: dict[int, ViTAPI] = {}
        for one in shared.deployments:
            self.lit_api_of(one)
        self._live: LiveServer | None = None
        if shared.settings.max_models is not None:
            self._live = LiveServer(shared, state, self.lit_api_of, self._lit_apis.pop)

    @property
    def lit_apis(self) -> list[ViTAPI]:
        """The LitAPI of each deployment, with its loop."""
        return list(self._lit_apis.values())

    def lit_api_of(self, deployment: SharedDeployment) -> ViTAPI:
        """Return the LitAPI of a deployment, made when it is first asked for."""
        known = self._lit_apis.get(deployment.number)
        if known is None or known.checkpoint is not deployment.checkpoint:  # another one had the place before
            known = self._lit_apis[deployment.number] = self._make_lit_api(deployment)
        return known

    def _make_lit_api(self, deployment: SharedDeployment) -> ViTAPI:
        lit_api_class, policy_class = self._classes
        settings, spec = self._settings, deployment.spec
        assert spec.max_batch_size is not None
        return lit_api_class(
            deployment.checkpoint,
            **options_of(settings) | {"dtype": spec.dtype},
            thresholds=deployment.thresholds,
            all_classes=deployment.needs_all_classes,
            on_failure=deployment.worker_board.publish_problem,
            max_batch_size=spec.max_batch_size,
            batch_timeout=settings.max_wait_s,
            loop=SlotLoop(
                deployment.table,
                deployment.worker_board,
                deployment.requests,
                deployment.answers,
                policy_class(spec.max_batch_size, settings.max_wait_s, self._shared_cores()),
                metrics_board=deployment.metrics_board,
                batch_stats=deployment.batch_stats,
                names=deployment.worker_names,
            ),
        )

    def _shared_cores(self) -> int | None:
        """Return the number of cores that decoding can keep busy and the model computes on; None if there are none."""
        cores, settings = available_cores(), self._settings
        decodes_on_all = settings.decoded_at_once * settings.api_servers >= cores
        return cores if decodes_on_all and self.shared.devices == ["cpu"] else None

    def server(self) -> ViTServer:
        """Return the LitServe server that runs the processes."""
        self._server = ViTServer(
            self.lit_apis,
            devices=self.shared.devices,
            workers_per_device=[one.spec.workers_per_device or 1 for one in self.shared.deployments],
            configure_logging=_logging(self._settings),
            serve_http=self._serve_http(os.getpid()),
            # A worker that is forked from this process would keep the memory of models that are unloaded.
            worker_imports=() if self._live is None else _WORKER_IMPORTS,
            passes_hangup=self._settings.has_decision_log_file,
        )
        return self._server

    def supervisor(self, start_http: StartProcess, start_worker: StartWorker) -> Supervisor:
        """Return the supervisor, which keeps the processes alive."""
        shared, settings, live = self.shared, self._settings, self._live
        groups = {one.number: self._group_of(one, start_worker) for one in shared.deployments}
        supervisor = Supervisor(
            start_http if live is None else live.forking(start_http),
            settings.api_servers,
            list(groups.values()),
            http_board=shared.http_board,
            http_restarts=self._metrics_writer.counter(metrics.HTTP_RESTARTS),
            worker_stall_s=settings.worker_stall_s,
            drain_delay_s=settings.drain_delay_s,
            drain_timeout_s=settings.drain_timeout_s,
            on_tick=self._tick,
            waits_for=tuple if live is None else live.models.waits_for,
        )
        if live is not None:
            live.connect(self._server, groups, lambda one: self._group_of(one, start_worker))
            live.supervise(supervisor)
        return supervisor

    def _group_of(self, deployment: SharedDeployment, start_worker: StartWorker) -> WorkerGroup:
        title = deployment.spec.title if self.shared.has_several else ""
        return WorkerGroup(
            functools.partial(start_worker, deployment.number),
            deployment.worker_board,
            deployment.table,
            Recovery(deployment.table, deployment.requests, deployment.answers),
            [f"{name} of {title}" if title else name for name in deployment.worker_names],
            title,
        )

    def _serve_http(self, parent: int) -> ServeHttp:
        prepare(has_redis=self._settings.redis_url is not None)

        def serve(number: int, listener: socket.socket) -> None:
            raise_descriptor_limit()
            exempt_from_collection()
            channel = None if self._live is None else self._live.channels.keep(number)
            app = build_application(self.shared, self.lit_api_of, number, channel)
            door = build_door(self.shared, app, number)
            serve_http(
                app,
                door,
                listener,
                parent=parent,
                heartbeat=functools.partial(self.shared.http_board.heartbeat, number),
                on_listening=functools.partial(self._take_over, number),
                stop_timeout_s=self._settings.drain_timeout_s,
                keeps_application=channel is None,
            )

        return serve

    def _take_over(self, number: int) -> None:
        if self._early is not None:
            self._early.hand_over(number)

    def _tick(self) -> None:
        if self._early is not None:
            self._early.reap()
        self._service_manager.update()
        self._refusals.update()
        if self._live is not None:
            self._live.models.step()
        if not self._has_been_ready and self._answers():
            self._has_been_ready = True
            logger.info("%s", ready_line(self._settings, _titles(self.shared), self.shared.devices))

    def _answers(self) -> bool:
        """Return whether every HTTP process accepts images."""
        heartbeats = map(self.shared.http_board.heartbeat_at, range(self._settings.api_servers))
        return self.shared.readiness.is_ready() and all(heartbeats)

    def _status(self) -> ServerStatus:
        """Return what a service manager wants to know.

        The supervisor replaces what hangs. If no HTTP process, or no ready worker, has sent a heartbeat for longer than
        that takes, it is the server itself that hangs.
        """
        http_board, now = self.shared.http_board, time.monotonic()
        boards = [one.worker_board for one in self.shared.deployments]
        ready = [(board, n) for board in boards for n in range(board.workers) if board.read(n).state == _READY]
        limit_s = self._settings.worker_stall_s + _SUPERVISION_S
        works = not ready or any(now - board.heartbeat_at(worker) < limit_s for board, worker in ready)
        answers = any(now - http_board.heartbeat_at(n) < _SUPERVISION_S for n in range(self._settings.api_servers))
        state, served = self.shared.readiness, _titles(self.shared)
        text = state.reason() or f"Serving {served} on port {self._settings.port}."
        return ServerStatus(state.is_ready(), state.is_draining(), works and answers and not state.is_gone(), text)


def _metrics_boards(shared: Shared) -> list[MetricsBoard]:
    """Return the boards of all metrics, each once."""
    own = [one.metrics_board for one in shared.deployments]
    return [shared.metrics_board, *own] if shared.has_several else own


def _titles(shared: Shared) -> str:
    """Return what a server serves."""
    if not shared.has_several:
        return shared.default.checkpoint.name
    return ", ".join(one.spec.title for one in shared.deployments)


def ready_line(settings: Settings, model: str, devices: Sequence[str]) -> str:
    """Return what the log says once the server is ready: a URL that can be opened, and what it serves."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host) or settings.host
    host = f"[{host}]" if ":" in host.strip("[]") and not host.startswith("[") else host
    where = " on all interfaces" if settings.host in ("0.0.0.0", "::") else ""
    processes = f"{settings.api_servers} HTTP process{'' if settings.api_servers == 1 else 'es'}"
    return f"Ready: http://{host}:{settings.port}{where} ({model}, {', '.join(devices)}, {processes})"


def _logging(settings: Settings) -> Callable[[], None]:
    return functools.partial(configure_logging, settings.log_level, settings.log_format)


def main(lit_api_class: type[ViTAPI] = ViTAPI, policy_class: type[BatchingPolicy] = BatchingPolicy) -> None:
    """Run the server with this process's settings; exit when it has stopped."""
    require_linux()
    exit_on_signals()
    started = begin()
    with started.early:
        run(started, lit_api_class, policy_class)


def run(
    started: StartingServer, lit_api_class: type[ViTAPI] = ViTAPI, policy_class: type[BatchingPolicy] = BatchingPolicy
) -> None:
    """Run the rest of a server that has begun to start; exit when it has stopped."""
    settings, early = started.settings, started.early
    state = None if settings.state_dir is None else ModelState(settings.state_dir, settings.written_deployments)
    if state is not None:
        settings = _with_state(settings, state)
    if settings.has_decision_log_file:
        ignore_hangups()
    if settings.traces and not is_installed():
        sys.exit("error: VIT_API_TRACES needs more packages: run pip install -r requirements-otel.txt.")
    early.enter(Phase.FETCHING)
    try:
        checkpoints = _load_checkpoints(settings, "MODELS" if settings is started.settings else "STATE_DIR")
        early.enter(Phase.LOADING)
        devices = choose_devices(settings.device)
        _check_openvino(settings, checkpoints, devices)
    except (CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")
    try:
        shared = Shared(settings, checkpoints, devices, early.is_over)
        application = Application(shared, lit_api_class, policy_class, early, state)
    except SettingError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(
            f"error: The system refuses a queue and a cache of this size ({error.strerror}): lower VIT_API_QUEUE_SIZE "
            "or VIT_API_CACHE_SIZE."
        )
    if resizer_name(exact=settings.exact_decode) == "pillow" and not settings.exact_decode:
        logger.warning("cykooz-resizer is not installed: Pillow resizes images, which takes 4 times as long")
    sys.exit(application.server().run(started.listeners, application.supervisor))


def _with_state(settings: Settings, state: ModelState) -> Settings:
    """Return the settings with the models that operators had loaded before the last stop; exit if that fails."""
    try:
        kept = state.read()
    except ModelStateError as error:
        sys.exit(f"error: {ENV_PREFIX}STATE_DIR: {error}")
    if kept is None:
        if state.is_outdated():
            logger.warning("%sMODELS has changed, so it counts, and what was loaded before does not", ENV_PREFIX)
        return settings
    restored = settings.model_copy(update={"models": kept})
    if len(restored.deployments) > (settings.max_models or 0):
        sys.exit(
            f"error: {ENV_PREFIX}MAX_MODELS: Input should be at least {len(restored.deployments)}, as many as were "
            f"loaded before the last stop. Got {settings.max_models}."
        )
    logger.info("Restored what was loaded before: %s", ", ".join(one.title for one in restored.deployments))
    return restored


def _load_checkpoints(settings: Settings, source: str) -> list[Checkpoint]:
    """Find the model of the settings, or all those that they list.

    Args:
        settings: The server's settings.
        source: The setting that the list is from.

    Raises:
        CheckpointError: One can't be served.
    """
    if settings.models is None:
        return [load_checkpoint(settings.model, settings.revision, served_name=settings.model_name)]
    checkpoints = []
    for one in settings.deployments:
        try:
            checkpoints.append(load_checkpoint(one.model, one.revision, served_name=one.name))
        except CheckpointError as error:
            raise CheckpointError(f"{ENV_PREFIX}{source}: {one.title}: {error}") from error
    return checkpoints


def _check_openvino(settings: Settings, checkpoints: Sequence[Checkpoint], devices: Sequence[str]) -> None:
    """Refuse what OpenVINO can't run here, and int8 models that must not be served.

    Raises:
        CheckpointError: There is one.
    """
    dtypes = [one.dtype for one in settings.deployments] or [settings.dtype]
    for checkpoint, dtype in zip(checkpoints, dtypes, strict=True):
        check_deployable(checkpoint, dtype, settings, devices)
