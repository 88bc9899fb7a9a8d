"""Waiting for a condition in coroutine tests, instead of sleeping for a while that is hoped to suffice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LONG_S = 60.0
"""Much longer than anything takes here, on a busy machine too."""


async def until(condition: Callable[[], bool]) -> None:
    """Poll a condition to a deadline."""
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.001)
