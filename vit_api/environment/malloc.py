"""Sets options of glibc's memory allocator; without effect on other C libraries."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

# Their numbers in malloc.h; see mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8


def set_options(options: Mapping[int, int]) -> bool:
    """Set the values of options; return whether the C library has accepted all of them."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    accepted = [mallopt(option, value) == 1 for option, value in options.items()]
    return all(accepted)
