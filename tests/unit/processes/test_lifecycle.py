"""The start of a worker, as far as it concerns others."""

from __future__ import annotations

import os
import threading

import pytest

from vit_api.processes.lifecycle import run_behind_others


def _niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_model_is_loaded_behind_other_work() -> None:
    """What loads it has a lower priority than what has it loaded, which keeps its own."""
    before, seen = _niceness(), []
    run_behind_others(lambda device: seen.append((device, _niceness())), "cpu")
    assert seen == [("cpu", min(19, before + 10))]
    assert _niceness() == before


def test_a_model_that_fails_to_load_behind_other_work() -> None:
    """Its error is the caller's."""

    def fail() -> None:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        run_behind_others(fail)
