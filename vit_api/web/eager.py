"""Runs a coroutine up to its first wait, so that what it never needs is never paid for.

A cache hit waits for nothing: it needs no time limit, and its connection need not be watched. asyncio's eager tasks
(Python 3.12) do the same at the price of a task.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class EagerStart(Generic[T]):
    """A coroutine that has run up to its first wait, or to its end.

    Args:
        work: The coroutine; what it raises before its first wait is raised here.

    Attributes:
        is_done: Whether it has returned.
        result: What it returned, if so.
    """

    __slots__ = ("_awaited", "_work", "is_done", "result")

    result: T

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        try:
            self._awaited = work.send(None)
        except StopIteration as end:
            self.is_done = True
            self.result = end.value
        else:
            self.is_done = False

    @types.coroutine
    def finish(self) -> Generator[Any, Any, T]:
        """Run the rest and return the result. To be awaited once, unless it is done."""
        awaited = self._awaited
        while True:
            try:
                value = yield awaited
            except BaseException as error:  # thrown in by the event loop, such as a cancellation
                resume = functools.partial(self._work.throw, error)
            else:
                resume = functools.partial(self._work.send, value)
            try:
                awaited = resume()
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                del resume  # an error would refer to this frame, and this frame to the error
