"""Requests as the hot routes see them: a thin view of what ASGI gives, and the limits that hold for all.

starlette's Request and Response alone would take as long as the rest of a cache hit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from starlette.types import Scope

from vit_api.access.client_address import ClientAddresses
from vit_api.urgency import Urgency
from vit_api.web.core.caller import Caller
from vit_api.web.core.deployment_choice import Chosen
from vit_api.web.preferences import PREFER, PRIORITY, urgency_of, wait_of

_MAX_TYPE_CHARACTERS = 64

Headers = Sequence[tuple[bytes, bytes]]


T = TypeVar("T")


class Work(Protocol):
    """Works on long bodies in threads, see `bodies.BodyWork`."""

    async def run(self, caller: Caller, work: Callable[..., T], *arguments: Any, held_bytes: int) -> T:
        """Return `work(*arguments)`."""


class Memory(Protocol):
    """What the bodies of requests may take, see `bodies.BodyMemory`."""

    def set_urgency(self, request: Request, urgency: Urgency) -> None:
        """Move a request to a class of urgency, or raise a `ViTError`."""


class RequestLimits(NamedTuple):
    """The memory and the time that the requests of a process may take.

    Attributes:
        max_pending_bytes: Maximum size of the bodies of all requests in flight.
        request_timeout_s: Seconds from the arrival of a request's body to a 504.
    """

    max_pending_bytes: int
    request_timeout_s: float


class BodyLimit(NamedTuple):
    """The maximum size of a request's body.

    Attributes:
        max_bytes: Of the body, including the syntax around its uploads.
        reported_bytes: The limit that an error reports, usually that of an upload.
    """

    max_bytes: int
    reported_bytes: int


class Timeline:
    """When a request reached its stages, in seconds of the monotonic clock; None for those that it did not reach.

    Attributes:
        arrived_at: The request line and headers were read.
        parsed_at: The upload was found in the body.
    """

    __slots__ = ("arrived_at", "parsed_at")

    def __init__(self, arrived_at: float) -> None:
        self.arrived_at = arrived_at
        self.parsed_at: float | None = None


async def _no_charge(_: int) -> None:
    pass


class Admission(NamedTuple):
    """What was found out when a request was let in: who sent it, and what it may still use.

    Attributes:
        key_digest: The digest of the client's key; empty if no key is required.
        charge: Counts images beyond the first against the client's rate limit.
        headers: Headers for any response to the request.
    """

    key_digest: bytes = b""
    charge: Callable[[int], Awaitable[None]] = _no_charge
    headers: Headers = ()


_OPEN = Admission()
_BY_PEER = ClientAddresses()


class Request:
    """One HTTP request.

    Args:
        scope: ASGI's description of it.
        request_id: Its id, for the response and the log.
        arrived_at: When it arrived, in seconds of the monotonic clock.
        timeout_s: Seconds from then until its response is due.
        endpoint: The endpoint in the metrics; empty if the route doesn't classify.
        addresses: Identifies clients without a key.
        work: Works on long bodies; None: any thread does.

    Attributes:
        scope: See above.
        id: Its id.
        method: The HTTP method.
        path: The path, decoded.
        query: The query string, as sent.
        headers: By lower-case name; of a repeated one the last.
        media_type: The start of the content type, in lower case.
        endpoint: See above.
        received_at: When its body was read, in seconds of the monotonic clock.
        deadline: When its response is due, in seconds of the monotonic clock.
        urgency: How urgent it is.
        wait_s: Seconds that the client will wait, if it says so by the preference `wait`.
        timeline: When it reached its stages.
        admission: Who sent it.
        body: The body, once it was read; empty after `take_body`.
        received_bytes: Bytes of the body that were read.
        reserved_bytes: Memory that is reserved for the body, see `bodies.BodyMemory`.
        memory: Where it is reserved; None before it is admitted.
        deployment: The model and version that answer it, if the server has several and one was chosen.
        named: The model and the version that it names, of which either may be None, once one was chosen.
    """

    __slots__ = (
        "_addresses",
        "_work",
        "admission",
        "body",
        "deadline",
        "deployment",
        "endpoint",
        "headers",
        "id",
        "media_type",
        "memory",
        "method",
        "named",
        "path",
        "query",
        "received_at",
        "received_bytes",
        "reserved_bytes",
        "scope",
        "timeline",
        "urgency",
        "wait_s",
    )

    def __init__(
        self,
        scope: Scope,
        request_id: bytes,
        *,
        arrived_at: float,
        timeout_s: float,
        endpoint: str = "",
        addresses: ClientAddresses = _BY_PEER,
        work: Work | None = None,
    ) -> None:
        self.scope = scope
        self.id = request_id
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.media_type = self.headers.get(b"content-type", b"")[:_MAX_TYPE_CHARACTERS].lower()
        self.endpoint = endpoint
        self._addresses = addresses
        self._work = work
        self.received_at = arrived_at
        self.deadline = arrived_at + timeout_s
        self.urgency = Urgency.NORMAL
        self.wait_s: int | None = None
        self.timeline = Timeline(arrived_at)
        self.admission = _OPEN
        self.body = b""
        self.received_bytes = 0
        self.reserved_bytes = 0
        self.memory: Memory | None = None
        self.deployment: Chosen | None = None
        self.named: tuple[str | None, str | None] = (None, None)

    def again(self, request_id: bytes, client: tuple[str, int] | None, arrived_at: float, body_bytes: int) -> Request:
        """Return another request with the same head, as observers see it once it was answered.

        Args:
            request_id: Its id.
            client: The address and port of its client.
            arrived_at: When it arrived, in seconds of the monotonic clock.
            body_bytes: The size of its body.
        """
        other = Request(
            {**self.scope, "client": client},
            request_id,
            arrived_at=arrived_at,
            timeout_s=self.deadline - self.received_at,
            endpoint=self.endpoint,
            addresses=self._addresses,
        )
        other.urgency, other.wait_s, other.admission = self.urgency, self.wait_s, self.admission
        other.deployment, other.received_bytes = self.deployment, body_bytes
        other.timeline.parsed_at = arrived_at
        return other

    @property
    def client(self) -> str:
        """Who sent it, for limits and fair shares: the digest of its key, or else its address."""
        return self.admission.key_digest.hex() or self._addresses.of(self.scope)

    def client_at(self, peer: tuple[str, int] | None) -> str:
        """Return the same for a request with this head that comes from another address and port."""
        return self.admission.key_digest.hex() or self._addresses.of({"client": peer, "headers": self.scope["headers"]})

    @property
    def address(self) -> str:
        """The address of its client, as far as proxies are trusted."""
        return self._addresses.address_of(self.scope)

    @property
    def caller(self) -> Caller:
        """Who sent it, and how urgent it is."""
        return Caller(self.client, self.urgency)

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since its arrival."""
        return (time.monotonic() - self.timeline.arrived_at) * 1000

    @property
    def bypasses_cache(self) -> bool:
        """Whether the client requests `no-cache`; see RFC 9111, section 5.2.1.4."""
        if b"cache-control" not in self.headers:
            return False
        return b"no-cache" in [directive.strip().lower() for directive in self.joined(b"cache-control").split(b",")]

    def joined(self, name: bytes) -> bytes:
        """Return the values of a header that may be repeated, and whose values belong together."""
        return b",".join(value for one, value in self.scope["headers"] if one == name)

    def read_preferences(self) -> None:
        """Take the urgency from the header `Priority` and the time to wait from `Prefer`, if there are any."""
        if PRIORITY in self.headers:
            self.urgency = urgency_of(self.joined(PRIORITY))
        if PREFER in self.headers:
            self.wait_s = wait_of(self.joined(PREFER))

    def set_urgency(self, urgency: Urgency) -> None:
        """Take the urgency from the body.

        Raises:
            ViTError: Requests of this urgency may take no more memory.
        """
        if self.memory is None:
            self.urgency = urgency
        else:
            self.memory.set_urgency(self, urgency)

    def start_clock(self, now: float, timeout_s: float) -> None:
        """Set the deadline once the body was read: by the server's limit and the client's, if it has one.

        A slow upload takes nothing from the time of the answer: it has limits of its own.

        Args:
            now: The time, in seconds of the monotonic clock.
            timeout_s: The server's limit.
        """
        self.received_at = now
        self.deadline = now + timeout_s
        if self.wait_s is not None:
            self.limit_to(self.wait_s)

    def limit_to(self, seconds: float) -> None:
        """Have the response due so many seconds after the body was read, unless it is due earlier."""
        self.deadline = min(self.deadline, self.received_at + seconds)

    async def run(self, work: Callable[..., T], *arguments: Any, held_bytes: int) -> T:
        """Return `work(*arguments)`, called in a thread when it is this caller's turn; see `bodies.BodyWork`."""
        if self._work is None:
            return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)
        return await self._work.run(self.caller, work, *arguments, held_bytes=held_bytes)

    def take_body(self) -> bytes:
        """Return the body and let go of it: once its images are found, they alone use memory."""
        body, self.body = self.body, b""
        return body
