"""Polling for a condition in coroutine tests, instead of sleeping for a fixed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LONG_S = 60.0
"""A timeout that no test reaches, even on a busy machine."""


async def until(condition: Callable[[], bool]) -> None:
    """Poll a condition to a deadline."""
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, f"the condition is still false after {LONG_S} s"
        await asyncio.sleep(0.001)
