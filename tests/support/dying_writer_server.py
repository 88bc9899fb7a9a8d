"""Our server with a worker that dies once, after it has written a long answer and before it sends the record."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from vit_api.app import main
from vit_api.ipc.slots import WorkerSlots

_write_long = WorkerSlots.write_long


def _write_and_die(self: WorkerSlots, slot: int, answer: bytes) -> None:
    _write_long(self, slot, answer)
    has_died = Path("has_died")
    if not has_died.exists():
        has_died.touch()
        os.kill(os.getpid(), signal.SIGKILL)


WorkerSlots.write_long = _write_and_die  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
