"""Stops work for clients that hang up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")


async def unless_gone(work: Awaitable[T], receive: Receive) -> T:
    """Return what `work` returns, or cancel it when the client hangs up.

    A watch task of our own: a task group of anyio costs many times as much (benchmarks/results/cancellation.json).

    Args:
        work: What the client waits for.
        receive: ASGI's source of messages; the request's body was read from it.

    Raises:
        ClientDisconnect: The client hung up.
    """
    task = asyncio.current_task()
    assert task is not None
    watch = asyncio.get_running_loop().create_task(_cancel_when_gone(task, receive))
    try:
        return await work
    except asyncio.CancelledError:
        if not watch.done():  # cancelled by someone else
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        watch.cancel()


async def _cancel_when_gone(task: asyncio.Task[Any], receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()
