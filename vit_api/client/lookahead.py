"""Runs a function in threads, some items ahead of who takes the results. Knows nothing of what it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Yield `function(item)` for each item in order, as soon as it is there.

    Unlike `Executor.map`, it takes items only as results are taken: at most `ahead` are submitted or wait to be
    taken. When its consumer stops, what has not begun is cancelled.

    Args:
        pool: Runs the function.
        function: What to run.
        items: Any number of them; read in the consumer's thread.
        ahead: How many results may be under way or wait; at least 1.

    Raises:
        Exception: What the function raises, at the item's turn; the items after it get nothing.
    """
    futures: deque[Future[Result]] = deque()
    try:
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) >= ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()
