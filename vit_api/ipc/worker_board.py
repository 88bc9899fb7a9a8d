"""The workers' notice board: what each worker says of itself, in shared memory, and the main process of them all.

Knows nothing of how a worker works. Each line has one writer at a time: its worker, or while that one is dead, the main
process.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vit_api.ipc.shared_memory import SharedArrays

_TEXT_BYTES = 64
_TEXTS: Final = ("device", "device_name", "dtype", "device_uuid", "engine")


class WorkerState(enum.IntEnum):
    """What a worker is doing."""

    STARTING = 0
    READY = 1
    RESTARTING = 2
    """It died, and another one takes its place; what comes meanwhile waits."""
    GONE = 3
    """It died and nobody will take its place; the server stops."""


_TAKES_IMAGES = frozenset({WorkerState.READY, WorkerState.RESTARTING})


@dataclass(frozen=True)
class WorkerStatus:
    """What one worker says of itself.

    Attributes:
        state: What it is doing.
        device: Where it runs, as torch names devices.
        device_name: The hardware's own name.
        dtype: What it computes in.
        device_uuid: The GPU's own number, as NVML knows it; empty for the CPU.
        engine: How the model runs.
        startup_s: How long it took until the worker was ready, in seconds.
    """

    state: WorkerState
    device: str
    device_name: str
    dtype: str
    device_uuid: str = ""
    engine: str = ""
    startup_s: float = 0.0


class WorkerBoard:
    """One notice for each worker. All are starting at first.

    Attributes:
        workers: How many there are.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        text = f"S{_TEXT_BYTES}"
        shared = SharedArrays(
            {
                "state": (np.uint8, (workers,)),
                "draining": (np.uint8, (1,)),
                "progress_at": (np.float64, (workers,)),
                "restarts": (np.uint64, (workers,)),
                "batches": (np.uint64, (workers,)),
                "images": (np.uint64, (workers,)),
                "startup_s": (np.float64, (workers,)),
            }
            | dict.fromkeys(_TEXTS, (text, (workers,)))
        )
        self._bind(shared)

    def _bind(self, shared: SharedArrays) -> None:
        self._shared = shared
        self._state = shared.view("state")
        self._draining = shared.view("draining")

    def __getstate__(self) -> dict[str, Any]:
        return {"workers": self.workers, "shared": self._shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.workers = state["workers"]
        self._bind(state["shared"])

    def post(self, worker: int, notice: WorkerStatus) -> None:
        """Write the notice of `worker`; the state last, so that a reader who sees it ready sees the rest."""
        for name in _TEXTS:
            self._shared[name][worker] = getattr(notice, name).encode("ascii", "replace")[:_TEXT_BYTES]
        self._shared["startup_s"][worker] = notice.startup_s
        self.beat(worker, time.monotonic())
        self._shared["state"][worker] = notice.state

    def read(self, worker: int) -> WorkerStatus:
        """Return the notice of `worker`."""
        texts = {name: bytes(self._shared[name][worker]).decode() for name in _TEXTS}
        startup_s = float(self._shared["startup_s"][worker])
        return WorkerStatus(WorkerState(self._shared["state"][worker]), startup_s=startup_s, **texts)

    def beat(self, worker: int, now: float) -> None:
        """Note that `worker` makes progress at `now`, in seconds of the monotonic clock."""
        self._shared["progress_at"][worker] = now

    def progress_at(self, worker: int) -> float:
        """Return when `worker` last made progress, in seconds of the monotonic clock."""
        return float(self._shared["progress_at"][worker])

    def count_batch(self, worker: int, images: int) -> None:
        """Count a batch that `worker` ran, and the images in it."""
        self._shared["batches"][worker] += 1
        self._shared["images"][worker] += images

    def mark_draining(self) -> None:
        """Note that the server stops, so that it doesn't count as ready. For the main process."""
        self._shared["draining"][0] = 1

    def mark_gone(self) -> None:
        """Note that no worker will be there any more. For the main process."""
        self._shared["state"][:] = WorkerState.GONE

    def mark_restarting(self, worker: int) -> None:
        """Note that `worker` died and is started again. For the main process."""
        self._shared["state"][worker] = WorkerState.RESTARTING
        self._shared["restarts"][worker] += 1

    def restarts_of(self, worker: int) -> int:
        """Return how often `worker` was started again."""
        return int(self._shared["restarts"][worker])

    def counts_of(self, worker: int) -> tuple[int, int]:
        """Return how many batches `worker` ran, and how many images were in them."""
        return int(self._shared["batches"][worker]), int(self._shared["images"][worker])

    def ready_count(self) -> int:
        """Count the workers that take images."""
        return int(np.count_nonzero(self._shared["state"] == WorkerState.READY))

    def takes_images(self) -> bool:
        """Tell whether there is a worker, or will be one soon again."""
        return not _TAKES_IMAGES.isdisjoint(self._state)

    def is_gone(self) -> bool:
        """Tell whether there will be no worker any more."""
        return bool((self._shared["state"] == WorkerState.GONE).all())

    def is_draining(self) -> bool:
        """Tell whether the server stops."""
        return bool(self._draining[0])

    def is_ready(self) -> bool:
        """Tell whether images are welcome: no stop is under way, every worker has started once, and one is ready."""
        is_starting = bool((self._shared["state"] == WorkerState.STARTING).any())
        return self.ready_count() > 0 and not is_starting and not self.is_draining()

    def dtypes(self) -> list[str]:
        """Return what the workers that have started compute in; one, unless their devices are of several kinds."""
        notices = (self.read(worker) for worker in range(self.workers))
        return sorted({notice.dtype for notice in notices if notice.state != WorkerState.STARTING})
