"""Our server with workers that the main process can't kill, as while a GPU's driver hangs."""

from __future__ import annotations

from multiprocessing.context import SpawnProcess

from vit_api.app import main
from vit_api.processes import ending


def _ignore(_: SpawnProcess) -> None:
    """Do nothing, like a signal to a process that is blocked in a driver."""


if __name__ == "__main__":
    SpawnProcess.kill = SpawnProcess.terminate = _ignore  # type: ignore[method-assign]
    ending._KILL_S = 1.0
    main()
