"""The composition of the main process and of the workers; `shared` has what all processes share.

The composition of an HTTP process is in `web.process`.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
from collections.abc import Callable

from vit_api import metrics, platforms
from vit_api.checkpoints.checkpoint import CheckpointError, load_checkpoint
from vit_api.command_line import main_settings, unknown_variables
from vit_api.decoding.resizing import resizer_name
from vit_api.devices import choose_devices
from vit_api.lit_api import ViTAPI
from vit_api.logs import configure_logging
from vit_api.processes.lifecycle import raise_descriptor_limit, serve_http
from vit_api.processes.listeners import Listeners
from vit_api.processes.lit_server import ServeHttp, ViTServer
from vit_api.processes.recovery import Recovery
from vit_api.processes.supervisor import StartProcess, Supervisor
from vit_api.settings import ENV_PREFIX, Settings
from vit_api.shared import Shared
from vit_api.thresholds import ThresholdsError
from vit_api.web.observers.tracing import is_installed
from vit_api.web.process import build_application, build_door
from vit_api.worker.batching import BatchingPolicy
from vit_api.worker.loop import SlotLoop

logger = logging.getLogger(__name__)


class Application:
    """A server.

    Args:
        shared: What its processes share.
        lit_api_class: Runs the model.
        policy_class: Decides when a batch is dispatched.

    Attributes:
        lit_api: The LitAPI, with its loop.
    """

    def __init__(
        self,
        shared: Shared,
        lit_api_class: type[ViTAPI] = ViTAPI,
        policy_class: type[BatchingPolicy] = BatchingPolicy,
    ) -> None:
        self.shared = shared
        self._settings = shared.settings
        self._metrics_writer = shared.metrics_board.metrics_writer("main")
        self.lit_api = self._make_lit_api(lit_api_class, policy_class)

    def _make_lit_api(self, lit_api_class: type[ViTAPI], policy_class: type[BatchingPolicy]) -> ViTAPI:
        shared, settings = self.shared, self._settings
        policy = policy_class(settings.max_batch_size, settings.max_wait_s)
        return lit_api_class(
            shared.checkpoint,
            dtype=settings.dtype,
            engine=settings.engine,
            max_image_side=settings.max_image_side,
            max_decode_bytes=settings.max_decode_bytes,
            exact_decode=settings.exact_decode,
            background=settings.background,
            cpu_threads=settings.cpu_threads,
            max_batch_size=settings.max_batch_size,
            batch_timeout=settings.max_wait_s,
            loop=SlotLoop(
                shared.table,
                shared.worker_board,
                shared.requests,
                shared.answers,
                policy,
                metrics_board=shared.metrics_board,
                batch_stats=shared.batch_stats,
            ),
        )

    def server(self) -> ViTServer:
        """Return the LitServe server that runs the processes."""
        return ViTServer(
            self.lit_api,
            devices=self.shared.devices,
            workers_per_device=self._settings.workers_per_device,
            configure_logging=_logging(self._settings),
            serve_http=self._serve_http(os.getpid()),
            passes_hangup=self._settings.has_decision_log_file,
        )

    def supervisor(self, start_http: StartProcess, start_worker: StartProcess) -> Supervisor:
        """Return the supervisor, which keeps the processes alive."""
        shared, settings = self.shared, self._settings
        return Supervisor(
            start_http,
            settings.api_servers,
            start_worker,
            http_board=shared.http_board,
            worker_board=shared.worker_board,
            table=shared.table,
            recovery=Recovery(shared.table, shared.requests, shared.answers),
            http_restarts=self._metrics_writer.counter(metrics.HTTP_RESTARTS),
            worker_stall_s=settings.worker_stall_s,
            drain_delay_s=settings.drain_delay_s,
            drain_timeout_s=settings.drain_timeout_s,
        )

    def _serve_http(self, parent: int) -> ServeHttp:
        def serve(number: int, listener: socket.socket) -> None:
            raise_descriptor_limit()
            app = build_application(self.shared, self.lit_api, number)
            door = build_door(self.shared, app, number)
            serve_http(
                app,
                door,
                listener,
                parent=parent,
                heartbeat=functools.partial(self.shared.http_board.heartbeat, number),
                stop_timeout_s=self._settings.drain_timeout_s,
            )

        return serve


def _logging(settings: Settings) -> Callable[[], None]:
    return functools.partial(configure_logging, settings.log_level, settings.log_format)


def main(lit_api_class: type[ViTAPI] = ViTAPI, policy_class: type[BatchingPolicy] = BatchingPolicy) -> None:
    """Run the server with this process's settings; exit when it has stopped."""
    service_links = platforms.drop_service_links(ENV_PREFIX)
    settings = main_settings()
    _logging(settings)()
    if service_links:
        logger.warning("Ignored, as Kubernetes describes a Service with them: %s", ", ".join(service_links))
    for warning in unknown_variables():
        logger.warning("%s", warning)
    if settings.traces and not is_installed():
        sys.exit("error: VIT_API_TRACES needs more packages: run pip install -r requirements-otel.txt.")
    try:
        devices = choose_devices(settings.device)
        checkpoint = load_checkpoint(settings.model, settings.revision, served_name=settings.model_name)
        listeners = Listeners(settings.host, settings.port, settings.api_servers)
    except (CheckpointError, ValueError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: Can't listen on {settings.host}:{settings.port}: {error.strerror}.")
    try:
        application = Application(Shared(settings, checkpoint, devices), lit_api_class, policy_class)
    except ThresholdsError as error:
        sys.exit(f"error: VIT_API_THRESHOLDS: {error}")
    except OSError as error:
        sys.exit(
            f"error: The system refuses a queue and a cache of this size ({error.strerror}): lower VIT_API_QUEUE_SIZE "
            "or VIT_API_CACHE_SIZE."
        )
    if resizer_name(exact=settings.exact_decode) == "pillow" and not settings.exact_decode:
        logger.warning("cykooz-resizer is not installed: Pillow resizes images, which takes 4 times as long")
    logger.info(
        "serving %s on http://%s:%d with %d HTTP processes and %d workers on %s",
        *(checkpoint.name, settings.host, settings.port, settings.api_servers),
        *(application.shared.worker_board.workers, ", ".join(devices)),
    )
    sys.exit(application.server().run(listeners, application.supervisor))
