"""Has the C library keep freed memory for the next batch, on Linux with glibc.

By default, glibc returns large blocks to the kernel as soon as they are freed, so each batch on the CPU gets pages that
the kernel must find and clear first: 200 page faults an image, for the activations of a small model at 224 pixels. It
also returns heaps, of at most 64 MiB, that other threads than the main one need beside their first one, as soon as they
are empty. So no new thread has a heap of its own: it shares the main one, or those of older threads, which are kept.
"""

from __future__ import annotations

from vit_api.environment import malloc

_KEPT_BYTES = 1 << 30
_OPTIONS = {
    malloc.MMAP_THRESHOLD: _KEPT_BYTES,
    malloc.TRIM_THRESHOLD: _KEPT_BYTES,
    malloc.TOP_PAD: 1 << 26,  # more than a heap of a thread has
    malloc.ARENA_MAX: 1,
}


def keep_freed_memory() -> bool:
    """Have blocks of up to 1 GiB taken from memory that this process keeps; return whether the C library does so.

    For processes that use the same memory again and again: one that has been large once stays so.
    """
    return malloc.set_options(_OPTIONS)
