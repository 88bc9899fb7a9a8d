"""Freed memory, in a process of its own, in which other tests left nothing."""

from __future__ import annotations

import subprocess
import sys

from tests.support.server import ROOT

_PROGRAM = """
import threading
from pathlib import Path
from PIL import Image
from vit_api.decoding.freed_memory import return_freed_memory

kept = []

def decode():
    picture = Image.new("RGB", (6000, 6000), "red")
    kept.append(bytes(100))  # at the end of this thread's heap
    del picture

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

for _ in range(3):
    thread = threading.Thread(target=decode)
    thread.start()
    thread.join()
assert return_freed_memory()
print(resident_mib())
"""


def test_memory_of_other_threads_is_returned() -> None:
    """Three pictures of 137 MiB each leave nothing of their size behind."""
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert int(result.stdout) < 100
