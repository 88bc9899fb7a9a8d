"""The C library keeps freed memory, on Linux with glibc."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_COUNT_FAULTS = """
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from vit_api.model.host_memory import keep_freed_memory

def count():
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [bytearray(40_000_000), bytearray(6_000_000), bytearray(40_000_000)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with ThreadPoolExecutor(1) as earlier, ThreadPoolExecutor(1) as later:
    earlier.submit(bytearray, 1000).result()
    if "keep" in sys.argv:
        assert keep_freed_memory()
    work = {"earlier": earlier.submit, "later": later.submit}.get(sys.argv[1])
    print(work(count).result() if work else count())
"""


def _faults(*arguments: str) -> int:
    """Return the page faults of the last of 20 times that a thread takes and frees 86 MB."""
    return int(subprocess.check_output([sys.executable, "-c", _COUNT_FAULTS, *arguments], text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt(3) is glibc's")
@pytest.mark.parametrize("thread", ["main", "earlier", "later"])
def test_freed_memory_is_used_again_without_page_faults(thread: str) -> None:
    """Otherwise the kernel clears each page again; in threads, too, whether they are older or younger than the call."""
    assert _faults(thread) > 1000
    assert _faults(thread, "keep") < 100
