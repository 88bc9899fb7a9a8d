"""Owns how torch and transformers are imported fast; knows nothing of what is made of them, and imports neither."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

_UNUSED = ("sklearn", "scipy")
"""What transformers imports where it is installed, for text generation and detection: 1 of 5 s, and never used here."""


@contextlib.contextmanager
def quick_import() -> Iterator[None]:
    """Have imports take a quarter less time, as long as the context lasts.

    The garbage collector rests, since what a module defines lives on: otherwise it visits all that again and again, for
    half a second. Optional packages that no image classifier needs seem absent, unless they were imported before.
    """
    hidden = [name for name in _UNUSED if name not in sys.modules]
    collects = gc.isenabled()
    gc.disable()
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # there is no such module, says the import system
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if collects:
            gc.enable()
