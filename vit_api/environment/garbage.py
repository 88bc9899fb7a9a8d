"""Spares the garbage collector what long imports leave. Knows nothing of what is imported."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Run no garbage collection until the context ends: for imports, whose objects nearly all stay.

    The collector would go through the same modules again and again, for a tenth of the time of a large import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def exempt_from_collection() -> None:
    """Keep objects that exist now out of all collections, which are shorter then, and leave their pages shared.

    Those among them that refer to each other are never freed.
    """
    gc.freeze()
