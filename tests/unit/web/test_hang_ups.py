"""Work that stops when its client hangs up, with an ASGI connection that the test plays."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from vit_api.web.hang_ups import unless_gone

pytestmark = pytest.mark.anyio


class Connection:
    """Says on request that the client is gone."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()

    def hang_up(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})


async def test_who_stays_gets_the_result() -> None:
    """Late messages of the body change nothing."""
    connection = Connection()
    connection.messages.put_nowait({"type": "http.request", "body": b""})
    assert await unless_gone(asyncio.sleep(0.001, "result"), connection.messages.get) == "result"


async def test_work_is_cancelled_when_its_client_hangs_up() -> None:
    """And its task goes on as if it had never been cancelled."""
    connection, was_cancelled = Connection(), False

    async def work() -> None:
        nonlocal was_cancelled
        connection.hang_up()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled = True
            raise

    with pytest.raises(ClientDisconnect):
        await unless_gone(work(), connection.messages.get)
    assert was_cancelled
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_cancellation_by_someone_else_stays_one() -> None:
    """It says nothing of the client."""
    connection = Connection()
    task = asyncio.create_task(unless_gone(asyncio.sleep(60), connection.messages.get))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_failure_is_raised() -> None:
    """With its own type."""

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("planted")

    with pytest.raises(LookupError, match="planted"):
        await unless_gone(fail(), Connection().messages.get)
