"""The instruction sets of this machine's processor, as Linux reports them."""

from __future__ import annotations

import functools
from pathlib import Path

_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the flags of the first processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def has_vnni() -> bool:
    """Return whether it adds products of 8-bit integers in 32 bits.

    Without it, pairs of them are added in 16 bits first, where large ones are cut off.
    """
    return not _VNNI.isdisjoint(cpu_flags())
