"""The memory of an HTTP process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
