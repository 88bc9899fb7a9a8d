"""Returns memory that was freed to the kernel, on Linux with glibc."""

from __future__ import annotations

import ctypes

LARGE_BYTES = 32 * 2**20
"""Pictures that took less to decode leave little behind, and most uploads are such."""


def return_freed_memory() -> bool:
    """Return freed memory of all threads to the kernel; return whether the C library can.

    PIL allocates a picture in blocks of 16 MiB, which glibc takes from the thread's own heap. It returns them only from
    the end of that heap, so that any small object there keeps hundreds of MiB, in each thread that decodes.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    trim(0)
    return True
