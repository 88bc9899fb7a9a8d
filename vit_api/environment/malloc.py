"""Controls glibc's memory allocator; without effect on other C libraries."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

# Their numbers in malloc.h; see mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8


def set_options(options: Mapping[int, int]) -> bool:
    """Set the values of options; return whether the C library has accepted all of them."""
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    accepted = [mallopt(option, value) == 1 for option, value in options.items()]
    return all(accepted)


def trim() -> None:
    """Return freed memory to the system; see malloc_trim(3)."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _function(name: str) -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # another C library
        return None
    return found
