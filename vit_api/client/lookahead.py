"""Runs a function in threads, a bounded number of items ahead of the consumer. Knows nothing of what it runs."""

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
    """Yield `function(item)` for each item, in order, as soon as it is available.

    Unlike `Executor.map`, it consumes items only as results are taken: at most `ahead` are running or waiting to be
    taken. When the consumer stops, calls that have not started are cancelled.

    Args:
        pool: Runs the function.
        function: The function to call.
        items: Any number of items; consumed in the caller's thread.
        ahead: Maximum number of results that are running or waiting; at least 1.

    Raises:
        Exception: What the function raises, when the item's turn comes; later items yield nothing.
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
