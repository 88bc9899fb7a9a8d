"""Has the C library keep freed memory for the next batch, on Linux with glibc.

By default, glibc returns large blocks to the kernel as soon as they are freed, so each batch on the CPU gets pages that
the kernel must find and clear first: 200 page faults an image, for the activations of a small model at 224 pixels.
"""

from __future__ import annotations

import ctypes

# Their numbers in malloc.h; see mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Have blocks of up to 1 GiB taken from memory that this process keeps; return whether the C library does so.

    For processes that use the same memory again and again: one that has been large once stays so.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(parameter, _KEPT_BYTES) == 1 for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
