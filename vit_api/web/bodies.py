"""The memory that the bodies of requests may take, and the parsing and decoding of long ones within it.

Knows nothing of what is in them.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from vit_api.decoding.cost import Cost
from vit_api.errors import Overloaded
from vit_api.urgency import Urgency
from vit_api.web.content_coding import decode
from vit_api.web.core.caller import Caller
from vit_api.web.core.decode_turns import UNCOUNTED_BYTES
from vit_api.web.requests import BodyLimit, Request

_MAX_RATIO = 1032
"""Maximum ratio of deflate's output to its input; see "Maximum Compression Factor" in zlib's technical details."""

LOW_SHARE = 0.5
"""Part of the memory that requests of low urgency may take, so that large ones never keep out others."""

_FULL = (
    "The server is overloaded: its memory for uploads is used up. Try again later.",
    "The server is overloaded: its memory for uploads of low urgency is used up. Try again later.",
)
"""By urgency."""

_S_PER_MIB = 0.006
"""CPU seconds to parse or inflate so much, roughly."""

_MAX_RELEASE_S = 1.0
"""Time for the event loop to let go of a body; it may be closing, and never do so."""

T = TypeVar("T")


class BodyMemory:
    """The memory of the bodies of a process's requests. For one event loop.

    Args:
        max_bytes: What all of them may take together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free_bytes = max_bytes
        self._free_low_bytes = int(max_bytes * LOW_SHARE)

    def reserve(self, request: Request, count: int) -> None:
        """Reserve memory for a request, until `release`, or free some of it if `count` is negative.

        Raises:
            Overloaded: So many bytes are not free, or not for requests of this urgency.
        """
        if count > self._free_bytes:
            raise Overloaded(_FULL[Urgency.NORMAL])
        if request.urgency is Urgency.LOW:
            self._take_low(count)
        self._free_bytes -= count
        request.reserved_bytes += count

    def set_urgency(self, request: Request, urgency: Urgency) -> None:
        """Move a request to a class of urgency, with the memory that is reserved for it.

        Raises:
            Overloaded: There is no memory for its body among those of low urgency.
        """
        if urgency is request.urgency:
            return
        self._take_low(request.reserved_bytes if urgency is Urgency.LOW else -request.reserved_bytes)
        request.urgency = urgency

    def _take_low(self, count: int) -> None:
        if count > self._free_low_bytes:
            raise Overloaded(_FULL[Urgency.LOW])
        self._free_low_bytes -= count

    def release(self, request: Request) -> None:
        """Free the memory that is reserved for a request. To be called once."""
        self._free_bytes += request.reserved_bytes
        if request.urgency is Urgency.LOW:
            self._free_low_bytes += request.reserved_bytes

    async def decode(self, request: Request, codings: Sequence[bytes], limit: BodyLimit) -> None:
        """Decode a request's compressed body, in a thread, since a few bytes may become millions.

        Raises:
            BadRequest: It is not of its coding, or is truncated.
            UploadTooLarge: The result exceeds the limit.
            Overloaded: There is no memory for the result.
        """
        body = request.take_body()
        # While it is being decoded, its size is unknown. With several codings, each may multiply it.
        reserved = min(limit.max_bytes, len(body) * _MAX_RATIO ** len(codings))
        self.reserve(request, reserved)
        # zlib collects its output in blocks, and joins them; so do the members of a gzip file.
        request.body = await request.run(decode, body, codings, limit, held_bytes=2 * reserved)
        self.reserve(request, len(request.body) - reserved)


class Turns(Protocol):
    """Threads that work in turns, see `core.decode_turns.DecodeTurns`."""

    def submit(self, work: Callable[[], None], cost: Cost, client: str, urgency: Urgency) -> None:
        """Have a thread do some work when it is its caller's turn."""


class BodyWork:
    """Work on long bodies, in the threads that decode images: in turns with them, and within the same memory.

    Args:
        turns: The threads.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    async def run(self, caller: Caller, work: Callable[..., T], *arguments: Any, held_bytes: int) -> T:
        """Return `work(*arguments)`, called in a thread.

        Args:
            caller: Whose work it is.
            work: What to call.
            arguments: The arguments; the first is the body.
            held_bytes: The memory that it takes besides its arguments.

        Raises:
            Exception: What it raises.
        """
        job = _BodyJob(functools.partial(work, *arguments), is_counted=held_bytes > UNCOUNTED_BYTES)
        cost = Cost(max(len(arguments[0]), held_bytes / 2) / 2**20 * _S_PER_MIB, held_bytes)
        self._turns.submit(job.run, cost, *caller)
        try:
            result: T = await job.future
        finally:
            job.call = None  # it may be long until a thread gets to it, and it holds the body
            asyncio.get_running_loop().call_soon(job.released.set)  # when the callers have let go of it, too
        return result


class _BodyJob:
    """A call that a thread makes for the event loop.

    Attributes:
        call: The call; None if it is not to be made.
        future: Gets its result.
        is_counted: Whether its memory counts; then it does until `released`.
        released: Set once the result alone is held, and the arguments are not.
    """

    __slots__ = ("_loop", "call", "future", "is_counted", "released")

    def __init__(self, call: Callable[[], Any], *, is_counted: bool) -> None:
        self.is_counted = is_counted
        self._loop = asyncio.get_running_loop()
        self.call: Callable[[], Any] | None = call
        self.future: asyncio.Future[Any] = self._loop.create_future()
        self.released = threading.Event()

    def run(self) -> None:
        """Make the call, in a thread."""
        call = self.call
        if call is None:
            return
        try:
            finish = functools.partial(self._finish, call(), None)
        except Exception as error:
            finish = functools.partial(self._finish, None, error)
        del call
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(finish)
            del finish
            if self.is_counted:
                self.released.wait(_MAX_RELEASE_S)

    def _finish(self, result: Any, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)
