"""The C library keeps freed memory, on Linux with glibc."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_COUNT_FAULTS = """
import resource
import sys
from vit_api.model.host_memory import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(40_000_000), bytearray(6_000_000)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(*arguments: str) -> int:
    """Return the page faults of the last of 20 times that a process takes and frees 46 MB."""
    return int(subprocess.check_output([sys.executable, "-c", _COUNT_FAULTS, *arguments], text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt(3) is glibc's")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    """Otherwise the kernel clears each page again."""
    assert _faults() > 1000
    assert _faults("keep") < 100
