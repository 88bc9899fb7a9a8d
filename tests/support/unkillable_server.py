"""Our server with workers that the main process can't kill, as while a GPU's driver hangs."""

from __future__ import annotations

from multiprocessing.context import ForkProcess

from vit_api.app import main
from vit_api.processes import ending

_kill = ForkProcess.kill


def _spare_workers(process: ForkProcess) -> None:
    """Do nothing to a worker, like a signal to a process that is blocked in a driver."""
    if process.name != "inference-worker":
        _kill(process)


if __name__ == "__main__":
    ForkProcess.kill = ForkProcess.terminate = _spare_workers  # type: ignore[method-assign]
    ending._KILL_S = 1.0
    main()
