"""This server with a common batching policy: a batch is dispatched when it is full or its window is over."""

from __future__ import annotations

from vit_api.app import main
from vit_api.worker.batching import BatchingPolicy


class FixedWindow(BatchingPolicy):
    """Always waits for the end of the window."""

    def remaining_wait_s(self, *, now: float, size: int, oldest_queued_at: float, incoming: int) -> float:
        """Return how long a batch may still wait, as if another image were always incoming."""
        del incoming
        return super().remaining_wait_s(now=now, size=size, oldest_queued_at=oldest_queued_at, incoming=1)


if __name__ == "__main__":
    # The worker is another process, which must be able to import the policy's class.
    from benchmarks.baselines.fixed_window import FixedWindow as Importable

    main(policy_class=Importable)
