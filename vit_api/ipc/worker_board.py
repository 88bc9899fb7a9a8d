"""The workers' board: the status of each worker, in shared memory, and whether the server is draining.

Each status has one writer at a time: its worker or, while that one is dead, the main process. Knows nothing of how a
worker works.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vit_api.ipc.shared_memory import SharedArrays

_TEXT_BYTES = 64
_PROBLEM_BYTES = 512
_TEXTS: Final = ("device", "device_name", "dtype", "device_uuid", "engine")


class WorkerState(enum.IntEnum):
    """The state of a worker."""

    STARTING = 0
    READY = 1
    RESTARTING = 2
    """It died and is being replaced; images wait for its successor."""
    GONE = 3
    """It died and will not be replaced; the server shuts down."""


_TAKES_IMAGES = frozenset({WorkerState.READY, WorkerState.RESTARTING})


@dataclass(frozen=True)
class WorkerStatus:
    """The status that one worker publishes.

    Attributes:
        state: Its state.
        device: Its device, as torch names devices.
        device_name: The name of the hardware.
        dtype: The dtype that it computes in.
        device_uuid: The GPU's UUID, as NVML knows it; empty for the CPU.
        engine: How the model runs.
        startup_s: Seconds from its start until it was ready.
    """

    state: WorkerState
    device: str
    device_name: str
    dtype: str
    device_uuid: str = ""
    engine: str = ""
    startup_s: float = 0.0


class WorkerBoard:
    """The status of each worker, STARTING at first.

    Args:
        workers: Number of workers.

    Attributes:
        workers: Number of workers.
    """

    def __init__(self, workers: int) -> None:
        text = f"S{_TEXT_BYTES}"
        shared = SharedArrays(
            {
                "state": (np.uint8, (workers,)),
                "draining": (np.uint8, (1,)),
                "heartbeat_at": (np.float64, (workers,)),
                "restarts": (np.uint64, (workers,)),
                "batches": (np.uint64, (workers,)),
                "images": (np.uint64, (workers,)),
                "startup_s": (np.float64, (workers,)),
            }
            | dict.fromkeys(_TEXTS, (text, (workers,)))
            | {"problem": (f"S{_PROBLEM_BYTES}", (workers,))}
        )
        self._bind(shared, 0, workers)

    def _bind(self, shared: SharedArrays, first: int, workers: int) -> None:
        self._memory = shared
        self._first = first
        self.workers = workers
        rows = slice(first, first + workers)
        self._shared = {name: array[rows] for name, array in shared.arrays.items() if name != "draining"}
        self._state = shared.view("state")[rows]
        self._draining = shared.view("draining")
        self._all_gone = bytes([WorkerState.GONE]) * workers

    def __getstate__(self) -> dict[str, Any]:
        return {"shared": self._memory, "first": self._first, "workers": self.workers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._bind(**state)

    def part(self, first: int, workers: int) -> WorkerBoard:
        """Return the board of so many workers from the number `first` on, which are numbered from 0 in it."""
        board = WorkerBoard.__new__(WorkerBoard)
        board._bind(self._memory, self._first + first, workers)
        return board

    def publish(self, worker: int, status: WorkerStatus) -> None:
        """Write the status of `worker`; its state last, so that a reader that sees it ready sees the rest."""
        for name in _TEXTS:
            self._shared[name][worker] = getattr(status, name).encode("ascii", "replace")[:_TEXT_BYTES]
        self._shared["startup_s"][worker] = status.startup_s
        self.heartbeat(worker, time.monotonic())
        self._shared["state"][worker] = status.state

    def read(self, worker: int) -> WorkerStatus:
        """Return the status of `worker`."""
        texts = {name: bytes(self._shared[name][worker]).decode() for name in _TEXTS}
        startup_s = float(self._shared["startup_s"][worker])
        return WorkerStatus(WorkerState(self._shared["state"][worker]), startup_s=startup_s, **texts)

    def publish_problem(self, problem: str) -> None:
        """Write why a worker could not start; of several that could not, one is enough."""
        self._shared["problem"][0] = problem.encode()[:_PROBLEM_BYTES]

    def problem(self) -> str:
        """Return why a worker could not start; empty if none said so."""
        return bytes(self._shared["problem"][0]).decode(errors="ignore")

    def heartbeat(self, worker: int, now: float) -> None:
        """Record that `worker` made progress at `now`, in seconds of the monotonic clock."""
        self._shared["heartbeat_at"][worker] = now

    def heartbeat_at(self, worker: int) -> float:
        """Return the time of the last heartbeat of `worker`, in seconds of the monotonic clock."""
        return float(self._shared["heartbeat_at"][worker])

    def count_batch(self, worker: int, images: int) -> None:
        """Count a batch that `worker` ran, and its images."""
        self._shared["batches"][worker] += 1
        self._shared["images"][worker] += images

    def mark_draining(self) -> None:
        """Record that the server is shutting down, so that it is no longer ready. For the main process."""
        self._draining[0] = 1

    def mark_gone(self) -> None:
        """Record that no further worker will be started. For the main process."""
        self._shared["state"][:] = WorkerState.GONE

    def mark_restarting(self, worker: int) -> None:
        """Record that `worker` died and is being restarted. For the main process."""
        self._shared["state"][worker] = WorkerState.RESTARTING
        self._shared["restarts"][worker] += 1

    def restarts_of(self, worker: int) -> int:
        """Return how often `worker` was restarted."""
        return int(self._shared["restarts"][worker])

    def counts_of(self, worker: int) -> tuple[int, int]:
        """Return how many batches and images `worker` ran."""
        return int(self._shared["batches"][worker]), int(self._shared["images"][worker])

    def ready_count(self) -> int:
        """Count the workers that are ready."""
        return int(np.count_nonzero(self._shared["state"] == WorkerState.READY))

    def takes_images(self) -> bool:
        """Return whether a worker is ready or being restarted."""
        return not _TAKES_IMAGES.isdisjoint(self._state)

    def is_gone(self) -> bool:
        """Return whether no further worker will be started."""
        return bytes(self._state) == self._all_gone  # asked for each request to a server with several models

    def is_draining(self) -> bool:
        """Return whether the server is shutting down."""
        return bool(self._draining[0])

    def is_ready(self) -> bool:
        """Return whether images are accepted: all workers have started once, one is ready, and it is not draining."""
        is_starting = bool((self._shared["state"] == WorkerState.STARTING).any())
        return self.ready_count() > 0 and not is_starting and not self.is_draining()

    def reason(self) -> str:
        """Return why the server is not ready, or degraded: a sentence; empty if neither."""
        if self.is_draining():
            return "The server is shutting down."
        ready = self.ready_count()
        if not self.is_ready():
            return f"{ready} of {self.workers} workers are ready: the model is loading."
        return "" if ready == self.workers else f"{ready} of {self.workers} workers are ready: others are restarting."

    def state_text(self) -> str:
        """Return what its workers lack, a phrase; empty if all are ready."""
        if self.is_gone():
            return "its workers crashed and can't be restarted"
        ready = self.ready_count()
        if ready == self.workers:
            return ""
        is_starting = bool((self._shared["state"] == WorkerState.STARTING).any())
        return f"{ready} of {self.workers} workers are ready: " + (
            "the model is loading" if is_starting else "the others are restarting"
        )

    def dtypes(self) -> list[str]:
        """Return the dtypes of the workers that have started: one, unless their devices differ in kind."""
        statuses = (self.read(worker) for worker in range(self.workers))
        return sorted({status.dtype for status in statuses if status.state != WorkerState.STARTING})
