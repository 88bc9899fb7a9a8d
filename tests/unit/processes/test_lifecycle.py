"""The start of a worker, as far as it concerns others, and the memory of an HTTP process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
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


_GROW_AND_BE_IDLE = """
from pathlib import Path
from vit_api.processes.lifecycle import FreedMemory, keep_freed_memory

def resident_mb():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) // 1024

keep_freed_memory()
memory = FreedMemory()
start_mb, requests = resident_mb(), 0
blocks = [(bytearray(b"x") * 2_500_000, bytes(600)) for _ in range(100)]
pins = [small for _, small in blocks]
blocks.clear()
for _ in range(300):
    requests += 5
    memory.check(requests)
kept_mb = resident_mb() - start_mb
for _ in range(130):
    memory.check(requests)
print(kept_mb, resident_mb() - start_mb)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim(3) is glibc's")
def test_freed_memory_is_returned_when_a_process_is_idle() -> None:
    """Until then it is kept for the next uploads; small objects among the freed blocks don't keep them."""
    kept, left = subprocess.check_output([sys.executable, "-c", _GROW_AND_BE_IDLE], text=True).split()
    assert int(kept) > 200
    assert int(left) < 30
