"""Spreads a load over client processes. Knows nothing of what they send."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from ctypes import c_long
from typing import Any

from vit_api.load.client import LoadPlan, Shift, work

_POLL_S = 0.1
_counters: Any = None


def run(plan: LoadPlan, processes: int = 1, show: Callable[[int], None] = lambda _: None) -> list[Shift]:
    """Load a server with client processes; return what each did.

    Args:
        plan: The whole load.
        processes: How many share it; at most one per connection.
        show: Called regularly with the number of replies so far.
    """
    plans = list(_shares(plan, processes))
    context = multiprocessing.get_context("spawn")
    counters: Any = context.Array(c_long, len(plans), lock=False)  # one per process
    with ProcessPoolExecutor(len(plans), context, _set_counters, (counters,)) as pool:
        shifts = [pool.submit(_work, number, share) for number, share in enumerate(plans)]
        while not all(shift.done() for shift in shifts):
            show(sum(counters))
            time.sleep(_POLL_S)
        return [shift.result() for shift in shifts]


def _shares(plan: LoadPlan, processes: int) -> Iterator[LoadPlan]:
    if plan.concurrency is None:
        for number in range(processes):
            yield dataclasses.replace(plan, rate=plan.rate / processes, seed=plan.seed + number)
        return
    processes = min(processes, plan.concurrency)
    for number in range(processes):
        connections = plan.concurrency // processes + (number < plan.concurrency % processes)
        yield dataclasses.replace(plan, concurrency=connections, seed=plan.seed + number)


def _set_counters(counters: Any) -> None:
    global _counters  # noqa: PLW0603 - the only way into a pool's processes
    _counters = counters


def _work(number: int, plan: LoadPlan) -> Shift:
    def progress() -> None:
        _counters[number] += 1

    return work(plan, progress)
