"""Processes and their ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import Any

import pytest

from vit_api.processes import ending

_CONTEXTS: dict[str, Any] = {name: multiprocessing.get_context(name) for name in ("fork", "forkserver")}


@pytest.mark.parametrize("method", list(_CONTEXTS))
def test_a_process_runs_until_it_is_killed(method: str) -> None:
    """So it does for its parent, and for the process that had the fork server start it."""
    process = _CONTEXTS[method].Process(target=time.sleep, args=(60,))
    process.start()
    assert ending.is_running(process)
    assert ending.kill(process)
    assert not ending.is_running(process)
    assert ending.end([process]) == []


def test_a_process_whose_status_was_taken_has_ended() -> None:
    """Something else in this process has waited for it, such as a stale handle with the same id."""
    process = _CONTEXTS["fork"].Process(target=time.sleep, args=(60,))
    process.start()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    assert process.is_alive()
    assert not ending.is_running(process)
    assert ending.kill(process)
    assert ending.end([process]) == []
