"""LitServe's server, with HTTP processes and a supervisor of our own.

LitServe's internals are used only here and in `worker.loop`, and a test checks them against the installed version.
Other modules use its public hooks.

LitServe provides devices, worker processes, their set-up and their loop. Ours are the HTTP processes (LitServe's share
one socket, and a manager process for all queues) and the supervision (LitServe loses the requests of a dead worker, and
leaves orphans behind). Knows nothing of images or models.
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import signal
import socket
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

import litserve as ls
from litserve.loops.loops import inference_worker

from vit_api.processes.lifecycle import WorkerProcess
from vit_api.processes.listeners import Listeners
from vit_api.processes.signals import FINISH, STOP_SIGNALS, blocked, stop_signals
from vit_api.processes.supervisor import StartProcess, Supervisor

logger = logging.getLogger(__name__)

AnyContext = ForkContext | ForkServerContext | SpawnContext
ServeHttp = Callable[[int, socket.socket], None]
StartWorker = Callable[[int, int], BaseProcess]
"""Starts the worker of a LitAPI with a given number; takes the numbers of both."""

Supervise = Callable[[StartProcess, StartWorker], Supervisor]


class ViTServer(ls.LitServer):  # type: ignore[misc]
    """A LitServer whose requests go through the slot table.

    Args:
        lit_apis: What to serve, one for each model; their loops read the slot table.
        devices: Where to run workers, as torch names devices.
        workers_per_device: Number of workers of each on each device.
        configure_logging: Called when a worker starts.
        serve_http: Serves HTTP on a socket, as the HTTP process with a given number, until the signal `FINISH`.
        worker_imports: Names of modules. If given, workers are forked from a process that has only imported these: what
            the main process shares when a worker is forked would stay in its memory while it lives. Otherwise they are
            forked from the main process.
        passes_hangup: Whether SIGHUP is passed on to the HTTP processes instead of ending the server.
    """

    def __init__(
        self,
        lit_apis: Sequence[ls.LitAPI],
        *,
        devices: Sequence[str],
        workers_per_device: Sequence[int],
        configure_logging: Callable[[], None],
        serve_http: ServeHttp,
        worker_imports: Sequence[str] = (),
        passes_hangup: bool = False,
    ) -> None:
        numbers = [int(device.partition(":")[2]) for device in devices if device.startswith("cuda")]
        for number, lit_api in enumerate(lit_apis[1:], 1):  # LitServe tells them apart by their paths
            lit_api.api_path = f"{lit_api.api_path}-{number}"
        super().__init__(
            list(lit_apis),
            accelerator="cuda" if numbers else "cpu",
            devices=numbers or 1,
            workers_per_device=list(workers_per_device),
            callbacks=[
                WorkerProcess(None if worker_imports else os.getpid(), configure_logging, shares_cores=not numbers)
            ],
        )
        self._serve_http = serve_http
        self._has_fork_server = bool(worker_imports)
        self._workers: AnyContext = mp.get_context("forkserver") if worker_imports else mp.get_context("fork")
        self._workers.set_forkserver_preload(list(worker_imports))
        self._passes_hangup = passes_hangup
        # LitServe passes these to its workers; ours use the slot table instead.
        self.workers_setup_status: dict[str, str] = {}
        self.litapi_request_queues = dict.fromkeys(lit_api.api_path for lit_api in lit_apis)
        self._lit_apis = dict(enumerate(lit_apis))
        self._transport = None

    def add(self, number: int, lit_api: ls.LitAPI, workers_per_device: int) -> None:
        """Serve a further LitAPI, whose workers are then started by its number, as LitServe does at its start."""
        lit_api.api_path = path = f"{lit_api.api_path}-{number}"
        lit_api.pre_setup()
        lit_api.loop.pre_setup(lit_api)
        lit_api.request_timeout = self.timeout
        self._workers_per_device_by_api_path[path] = workers_per_device
        self.litapi_request_queues[path] = None
        self._lit_apis[number] = lit_api

    def remove(self, number: int) -> None:
        """Serve a LitAPI no longer, whose workers have ended."""
        path = self._lit_apis.pop(number).api_path
        for by_path in (self._workers_per_device_by_api_path, self.litapi_request_queues):
            by_path.pop(path, None)
        endpoint = path.split("/")[-1]
        for name in [name for name in self.workers_setup_status if name.rpartition("_")[0] == endpoint]:
            del self.workers_setup_status[name]

    def register_endpoints(self) -> None:
        """Add no routes: each HTTP process builds its own application."""

    def _register_middleware(self) -> None:
        """Add no middleware: LitServe's compresses responses, and ours are too small to gain from that."""

    def run(self, listeners: Listeners, supervise: Supervise) -> int:
        """Serve until SIGINT or SIGTERM, or until processes die that can't be restarted.

        Args:
            listeners: A socket for each HTTP process.
            supervise: Returns a supervisor, given the functions that start an HTTP process and a worker.

        Returns:
            The exit status: 0 after a signal, 1 otherwise.
        """
        self._listeners = listeners
        supervisor = supervise(self._start_http, self._start_worker)
        status = 1
        with stop_signals(*([signal.SIGHUP] if self._passes_hangup else [])) as stop:
            try:
                supervisor.start_http()
                supervisor.start_workers()
                status = supervisor.watch(stop)
            finally:
                if not supervisor.stop():
                    logging.shutdown()
                    os._exit(status)  # otherwise multiprocessing would wait for what is left behind
        return status

    def _start_http(self, number: int) -> BaseProcess:
        self._listeners.get(number)
        process = mp.get_context("fork").Process(
            target=self._run_http, args=(number,), name=f"http-{number}", daemon=True
        )
        with blocked(*STOP_SIGNALS, FINISH, signal.SIGHUP):  # until the process has its own handlers
            process.start()
        self._listeners.close(number)
        return process

    def _run_http(self, number: int) -> None:
        self._serve_http(number, self._listeners.keep(number))

    def _start_worker(self, model: int, number: int) -> BaseProcess:
        if self._has_fork_server:
            resource_tracker.ensure_running()  # its start, which the fork server needs, unblocks the signals
        with blocked(*STOP_SIGNALS, signal.SIGHUP):  # until the process has its own handlers
            process: BaseProcess = self.launch_single_inference_worker(self._lit_apis[model], number)
        return process

    def launch_single_inference_worker(self, lit_api: ls.LitAPI, worker_id: int) -> BaseProcess:
        """Start a worker as LitServe does, but forked from a process without threads or CUDA that would be copied."""
        try:
            return self._launch(self._workers, lit_api, worker_id)
        except (EOFError, OSError):
            if not self._has_fork_server:
                raise
            logger.warning("The process that workers are forked from has ended; one worker is spawned.")
            return self._launch(mp.get_context("spawn"), lit_api, worker_id)

    def _launch(self, context: AnyContext, lit_api: ls.LitAPI, worker_id: int) -> BaseProcess:
        device = self._inference_workers_config_for_api(lit_api.api_path)[worker_id]
        process: BaseProcess = context.Process(
            target=inference_worker,
            args=(
                lit_api,
                device[0] if len(device) == 1 else device,
                worker_id,
                self._get_request_queue(lit_api.api_path),
                self._transport,
                self.workers_setup_status,
                self._callback_runner,
                self.restart_workers,
            ),
            name="inference-worker",
        )
        process.start()
        return process
