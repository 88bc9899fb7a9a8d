"""Consumes items in groups, or a bounded number ahead of the consumer in threads. Knows nothing of what they are."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield items in lists of `size`, as they are asked for; the last one may be shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


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
