"""CPU time of a request's time limit, and of watching its connection.

    python -m benchmarks.cancellation

Compares this server's code with scopes of asyncio and anyio, in one process and in turns; medians. Requests
whose bodies come in pieces need the time limit, cache misses the watch.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import uvloop

from benchmarks.harness import command_line, results, tables
from vit_api.errors import BodyTimeout
from vit_api.web.hang_ups import unless_gone
from vit_api.web.time_limit import TimeLimit

_LIMIT_S = 10.0


async def _work() -> None:
    pass


async def _yielding_work() -> None:
    await asyncio.sleep(0)


async def _connected() -> dict[str, Any]:
    """Wait, as ASGI's `receive` does for as long as a client stays connected."""
    await asyncio.Event().wait()
    raise AssertionError


def _time_limits() -> dict[str, Callable[[], Awaitable[None]]]:
    limit = TimeLimit(_LIMIT_S, lambda: BodyTimeout("The body took too long."))

    async def ours() -> None:
        await limit.hold(_work(), time.monotonic())

    async def of_asyncio() -> None:
        async with asyncio.timeout(_LIMIT_S):
            await _work()

    async def of_anyio() -> None:
        with anyio.fail_after(_LIMIT_S):
            await _work()

    return {"TimeLimit": ours, "asyncio.timeout": of_asyncio, "anyio.fail_after": of_anyio}


def _watches() -> dict[str, Callable[[], Awaitable[None]]]:
    async def ours() -> None:
        await unless_gone(_yielding_work(), _connected)

    async def of_anyio() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_connected)
            await _yielding_work()
            tasks.cancel_scope.cancel()

    return {"unless_gone": ours, "anyio.create_task_group": of_anyio}


async def measure(rounds: int, calls: int) -> dict[str, float]:
    """Return microseconds of CPU time per call, by implementation."""
    ways = _time_limits() | _watches()
    costs_us: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            began_at = time.process_time()
            for _ in range(calls):
                await call()
            costs_us[name].append((time.process_time() - began_at) / calls * 1e6)
    return {name: round(statistics.median(costs), 2) for name, costs in costs_us.items()}


def table(report: dict[str, Any]) -> str:
    """Return the table of a result."""
    rows = [(name, f"{cost_us:.1f} us") for name, cost_us in report["us_per_call"].items()]
    return tables.markdown(("cancellation by", "CPU per request"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("cancellation", __doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=20_000, help="calls per round (default: %(default)s)")
    options = command_line.parse(parser, arguments)
    result = uvloop.run(measure(options.rounds, options.calls))
    print(table({"us_per_call": result}))
    results.write(options.out, {"us_per_call": result})


if __name__ == "__main__":
    main()
