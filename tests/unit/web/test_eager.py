"""Running coroutines eagerly up to their first wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from vit_api.web.eager import EagerStart

pytestmark = pytest.mark.anyio


async def test_what_never_waits_is_done_at_once() -> None:
    """A coroutine that never suspends completes without the event loop, also through nested ones."""

    async def inner() -> int:
        return 6

    async def outer() -> int:
        return await inner() + 1

    start = EagerStart(outer())
    assert (start.is_done, start.result) == (True, 7)


async def test_what_it_raises_before_it_waits_is_raised_at_once() -> None:
    """An exception before the first wait is raised to the caller."""

    async def fail() -> None:
        raise LookupError("planted")

    with pytest.raises(LookupError, match="planted"):
        EagerStart(fail())


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(lambda: asyncio.sleep(0), id="a turn of the event loop"),
        pytest.param(lambda: asyncio.sleep(0.001), id="a timer"),
        pytest.param(lambda: asyncio.to_thread(int), id="a thread"),
    ],
)
async def test_what_waits_is_finished_later(wait: Callable[[], Awaitable[object]]) -> None:
    """A coroutine may suspend several times and is then completed by a task."""
    steps: list[int] = []

    async def work() -> str:
        for step in range(3):
            steps.append(step)
            await wait()
        return "result"

    start = EagerStart(work())
    assert (start.is_done, steps) == (False, [0])
    assert await start.finish() == "result"
    assert steps == [0, 1, 2]


async def test_what_it_waits_for_may_fail() -> None:
    """The exception is raised inside the coroutine, which may handle it."""
    failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> str:
        try:
            await failing
        except LookupError:
            await asyncio.sleep(0)
            return "handled"
        raise AssertionError

    start = EagerStart(work())
    failing.set_exception(LookupError("planted"))
    assert await start.finish() == "handled"


async def test_a_later_failure_is_raised_by_finish() -> None:
    """The exception keeps its type."""

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("planted")

    with pytest.raises(LookupError, match="planted"):
        await EagerStart(fail()).finish()


async def test_a_cancelled_task_cancels_it() -> None:
    """The coroutine can clean up, which may involve waiting."""
    steps: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    async def finish() -> None:
        await EagerStart(work()).finish()

    task = asyncio.create_task(finish())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["cleaned up"]
