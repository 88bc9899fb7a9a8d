"""Where shared memory and pipes get their file descriptors: new ones, or those of another process.

Processes that exist already can share what a process makes later: it records the descriptors of what it makes, and
sends them; another one makes the same objects in the same order, and they take over these descriptors. Knows nothing
of what is made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

Descriptors = tuple[int, ...]


class _Recording:
    """Makes descriptors, and keeps duplicates: an object may close its own once it has mapped the memory."""

    def __init__(self, made: list[int]) -> None:
        self.made = made

    def take(self, make: Callable[[], Descriptors]) -> Descriptors:
        new = make()
        self.made += map(os.dup, new)
        return new


class _Adoption:
    """Gives out the descriptors of another process instead of new ones.

    Args:
        descriptors: In the order in which they were recorded.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        self.left = list(descriptors)

    def take(self, make: Callable[[], Descriptors], count: int) -> Descriptors:
        taken, self.left = tuple(self.left[:count]), self.left[count:]
        if len(taken) < count:
            raise ValueError("Another process made fewer descriptors than this one takes over.")
        return taken


_source: ContextVar[_Recording | _Adoption | None] = ContextVar("descriptors", default=None)


@contextlib.contextmanager
def recording(made: list[int]) -> Iterator[None]:
    """Record duplicates of the descriptors of what is made in this context; the caller closes them.

    Args:
        made: Where they are added.
    """
    token = _source.set(_Recording(made))
    try:
        yield
    finally:
        _source.reset(token)


@contextlib.contextmanager
def adopting(descriptors: Sequence[int]) -> Iterator[None]:
    """Have what is made in this context take over descriptors, in the order in which they were recorded.

    Raises:
        ValueError: They are not as many as are made.
    """
    source = _Adoption(descriptors)
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)
    if source.left:
        raise ValueError("Another process made more descriptors than this one takes over.")


def memory(size: int) -> int:
    """Return the descriptor of anonymous shared memory of this size in bytes, initially zero."""

    def make() -> Descriptors:
        descriptor = os.memfd_create("vit-api", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size)
        return (descriptor,)

    return _take(make, 1)[0]


def pipe() -> tuple[int, int]:
    """Return the reading and the writing end of a pipe; neither ever blocks."""
    reader, writer = _take(lambda: os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK), 2)
    return reader, writer


def _take(make: Callable[[], Descriptors], count: int) -> Descriptors:
    source = _source.get()
    if source is None:
        return make()
    return source.take(make) if isinstance(source, _Recording) else source.take(make, count)
