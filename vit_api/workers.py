"""The workers' notice board: what each worker says of itself, in shared memory, for the HTTP processes to read.

Knows nothing of how a worker works. Each line has one writer, its worker (or, before that one starts, the server).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from vit_api.shared_memory import SharedArrays

_TEXT_BYTES = 64


class WorkerState(enum.IntEnum):
    """What a worker is doing."""

    STARTING = 0
    READY = 1


@dataclass(frozen=True)
class WorkerNotice:
    """What one worker says of itself."""

    state: WorkerState
    device: str
    device_name: str
    dtype: str


class WorkerBoard:
    """One notice for each worker. All are starting at first.

    Attributes:
        workers: How many there are.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        text = f"S{_TEXT_BYTES}"
        self._shared = SharedArrays(
            {
                "state": (np.uint8, (workers,)),
                "batches": (np.uint64, (workers,)),
                "images": (np.uint64, (workers,)),
                "device": (text, (workers,)),
                "device_name": (text, (workers,)),
                "dtype": (text, (workers,)),
            }
        )

    def post(self, worker: int, notice: WorkerNotice) -> None:
        """Write the notice of `worker`; the state last, so that a reader who sees it ready sees the rest."""
        for name in ("device", "device_name", "dtype"):
            self._shared[name][worker] = getattr(notice, name).encode("ascii", "replace")[:_TEXT_BYTES]
        self._shared["state"][worker] = notice.state

    def read(self, worker: int) -> WorkerNotice:
        """Return the notice of `worker`."""
        texts = (bytes(self._shared[name][worker]).decode() for name in ("device", "device_name", "dtype"))
        return WorkerNotice(WorkerState(self._shared["state"][worker]), *texts)

    def count_batch(self, worker: int, images: int) -> None:
        """Count a batch that `worker` ran, and the images in it."""
        self._shared["batches"][worker] += 1
        self._shared["images"][worker] += images

    def counts_of(self, worker: int) -> tuple[int, int]:
        """Return how many batches `worker` ran, and how many images were in them."""
        return int(self._shared["batches"][worker]), int(self._shared["images"][worker])

    def ready_count(self) -> int:
        """Count the workers that take images."""
        return int(np.count_nonzero(self._shared["state"] == WorkerState.READY))

    def dtypes(self) -> list[str]:
        """Return what the workers that take images compute in; one, unless their devices are of several kinds."""
        notices = (self.read(worker) for worker in range(self.workers))
        return sorted({notice.dtype for notice in notices if notice.state == WorkerState.READY})
