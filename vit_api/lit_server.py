"""LitServe's server, with HTTP processes and a stop of our own. The only module that touches LitServe's internals.

LitServe's are the devices, the worker processes, their set-up and their loop. Ours are the HTTP processes (LitServe's
share one socket, and a manager process for all queues) and the stop (LitServe leaves orphans behind). Knows nothing
of images or models.
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import litserve as ls
from litserve.connector import check_cuda_with_nvidia_smi

from vit_api.processes import STOP_SIGNALS, WorkerProcess, blocked, stop_signals

logger = logging.getLogger(__name__)

_WORKER_STOP_S = 5.0
_STOP_MARGIN_S = 5.0
"""What an HTTP process may need to end after its requests got their time."""

ServeHttp = Callable[[int, socket.socket], None]


def choose_devices(device: str) -> list[str]:
    """Return the devices that the setting `device` means, as torch names them.

    `auto` means all GPUs that the driver lists, or the CPU. LitServe's own `auto` looks whether torch was imported,
    which it never is in this process.
    """
    numbers = [int(number) for number in device.partition(":")[2].split(",") if number]
    if device.startswith("cuda:"):
        return [f"cuda:{number}" for number in numbers]
    gpus = 0 if device == "cpu" else check_cuda_with_nvidia_smi()
    if device == "cuda" and not gpus:
        raise ValueError("VIT_API_DEVICE=cuda, but nvidia-smi lists no GPU; use auto or cpu")
    return [f"cuda:{number}" for number in range(gpus)] or ["cpu"]


class ViTServer(ls.LitServer):  # type: ignore[misc]
    """A LitServer whose requests go through the slot table.

    Args:
        lit_api: What to serve; its loop reads the slot table.
        devices: Where to run workers, as torch names devices.
        workers_per_device: Inference workers on each.
        log_level: Of the workers.
        serve_http: Serves HTTP on a socket, as the HTTP process of that number, until a signal stops it.
        stop_timeout_s: Seconds that requests under way get at the end.
    """

    def __init__(
        self,
        lit_api: ls.LitAPI,
        *,
        devices: Sequence[str],
        workers_per_device: int,
        log_level: str,
        serve_http: ServeHttp,
        stop_timeout_s: float,
    ) -> None:
        numbers = [int(device.partition(":")[2]) for device in devices if device.startswith("cuda")]
        super().__init__(
            lit_api,
            accelerator="cuda" if numbers else "cpu",
            devices=numbers or 1,
            workers_per_device=workers_per_device,
            callbacks=[WorkerProcess(os.getpid(), log_level)],
        )
        self._serve_http = serve_http
        self._stop_timeout_s = stop_timeout_s
        # LitServe's worker takes these along; ours has the slot table instead.
        self.workers_setup_status: dict[str, str] = {}
        self.litapi_request_queues = {lit_api.api_path: None}
        self._transport = None

    def register_endpoints(self) -> None:
        """Add none of LitServe's routes: each HTTP process builds its own application."""

    def _register_middleware(self) -> None:
        """Add none of LitServe's middleware; it would compress answers that are too small to gain."""

    def run(self, listeners: Sequence[socket.socket]) -> int:
        """Serve until SIGINT or SIGTERM, or until a process ends by itself.

        Args:
            listeners: A bound socket for each HTTP process; they are closed here.

        Returns:
            The exit status: 0 after a signal, 1 after a process ended by itself.
        """
        http: list[BaseProcess] = []
        workers: list[BaseProcess] = []
        with stop_signals() as stop:
            try:
                http += [self._start_http(number, listeners) for number in range(len(listeners))]
                # A listener that this process kept open would take connections that nobody accepts, after the stop.
                for listener in listeners:
                    listener.close()
                with blocked(signal.SIGINT):  # Ctrl-C reaches all processes; this one stops the workers
                    workers += self.launch_inference_worker(self.lit_api)
                return self._watch(stop, [*http, *workers])
            finally:
                _stop(http, self._stop_timeout_s + _STOP_MARGIN_S)
                _stop(workers, _WORKER_STOP_S)

    def _start_http(self, number: int, listeners: Sequence[socket.socket]) -> BaseProcess:
        process = mp.get_context("fork").Process(
            target=self._run_http, args=(number, listeners), name=f"http-{number}", daemon=True
        )
        with blocked(*STOP_SIGNALS):  # until the process has handlers of its own
            process.start()
        return process

    def _run_http(self, number: int, listeners: Sequence[socket.socket]) -> None:
        for other, listener in enumerate(listeners):
            if other != number:
                listener.close()
        self._serve_http(number, listeners[number])

    def _watch(self, stop: socket.socket, processes: list[BaseProcess]) -> int:
        """Wait for a signal or the end of a process, and return the exit status."""
        ready = wait([stop, *(process.sentinel for process in processes)])
        if stop in ready:
            logger.info("stopping")
            return 0
        for process in processes:
            if process.sentinel in ready:
                process.join()
                logger.error("%s ended by itself (exit code %s); stopping", process.name, process.exitcode)
        return 1


def _stop(processes: Sequence[BaseProcess], timeout_s: float) -> None:
    """Ask processes to end, wait for them, and kill those that don't."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            logger.warning("%s did not stop within %g s; killing it", process.name, timeout_s)
            process.kill()
            process.join()
