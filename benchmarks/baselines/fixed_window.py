"""This server with the batching policy of most others: a batch goes when it is full or its window is over."""

from __future__ import annotations

from vit_api.app import main
from vit_api.worker.batching import BatchingPolicy


class FixedWindow(BatchingPolicy):
    """Waits out the window, though nobody may be on the way."""

    def remaining_wait_s(self, *, now: float, size: int, oldest_queued_at: float, incoming: int) -> float:
        """Return how long a batch may still wait, as if somebody were on the way all the time."""
        del incoming
        return super().remaining_wait_s(now=now, size=size, oldest_queued_at=oldest_queued_at, incoming=1)


if __name__ == "__main__":
    # The worker is another process, to which the policy's class must have an importable name.
    from benchmarks.baselines.fixed_window import FixedWindow as Importable

    main(policy_class=Importable)
