"""Requests of hot routes: admitted by their heads, then handled, and their outcomes recorded.

What the door calls; see `web.door.application`. Knows nothing of connections.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from vit_api.access.client_address import ClientAddresses
from vit_api.errors import InternalError, UploadTooLarge, ViTError
from vit_api.metrics import CLIENT_LEFT
from vit_api.web.admission.rate_limits import without_limits
from vit_api.web.bodies import BodyMemory
from vit_api.web.content_coding import codings_of
from vit_api.web.content_digest import Digest, check_digests, digests_of, has_digests
from vit_api.web.observers.exchange import Exchange, Observer
from vit_api.web.observers.hits import HitRecorder
from vit_api.web.repeats import ChargeHit, Generation, Repeat
from vit_api.web.requests import BodyLimit, Headers, Request, Work
from vit_api.web.responses import REQUEST_ID, Response, error_response, header_lines
from vit_api.web.routes import HotRoute

logger = logging.getLogger(__name__)

_UNKNOWN = BodyLimit(0, 0)
_BY_PEER = ClientAddresses()


class Limits(Protocol):
    """Charges clients without waiting, see `admission.rate_limits.RateLimits`."""

    def charge_now(self, request: Request) -> bool:
        """Charge the client of a request; return whether that was possible."""

    def charge_hit(self, client: str) -> bytes | None:
        """Charge a client, and return the headers to send, a line break before each; None: it was not."""


class CallContext(NamedTuple):
    """What the requests of a process have in common.

    Attributes:
        memory: What their bodies may take.
        timeout_s: Seconds from the arrival of a body until its response is due.
        observers: Told of each answered request.
        check_key: Raises a `ViTError` if a request has no valid key.
        charge: Raises a `ViTError` if the client of a hot route's request has used up its rate limit.
        limits: Does the same without waiting, where that is possible; None: see `charge`.
        cors_headers: Returns the headers that let a page of another origin read a response.
        addresses: Identifies clients without a key by address.
        work: Works on long bodies.
    """

    memory: BodyMemory
    timeout_s: float
    observers: Sequence[Observer]
    check_key: Callable[[Request], None] | None = None
    charge: Callable[[Request], Awaitable[None]] | None = None
    limits: Limits | None = None
    cors_headers: Callable[[Request], Headers] | None = None
    addresses: ClientAddresses = _BY_PEER
    work: Work | None = None

    def observe(self, exchange: Exchange) -> None:
        """Tell all observers."""
        for observer in self.observers:
            observer.observe(exchange)


class HotCall:
    """One request of a hot route.

    Args:
        request: The request; its body is not read yet.
        route: Its route; None for a request that can only fail.
        context: What it shares with others.
        generation: The routes that it was found in; None if it can only fail.
    """

    __slots__ = ("_codings", "_context", "_digests", "_generation", "_is_admitted", "_limit", "_request", "_route")

    def __init__(
        self, request: Request, route: HotRoute | None, context: CallContext, generation: Generation | None = None
    ) -> None:
        self._request = request
        self._route = route
        self._context = context
        self._generation = generation
        self._limit = _UNKNOWN
        self._codings: Sequence[bytes] = ()
        self._digests: Sequence[Digest] = ()
        self._is_admitted = False
        request.memory = context.memory
        request.read_preferences()

    async def admit(self) -> None:
        """Check key, rate limit and announced length, so that a refused upload costs nothing.

        Raises:
            ViTError: The request is refused.
        """
        request, context = self._request, self._context
        try:
            if context.check_key is not None:
                context.check_key(request)
            if context.charge is not None:
                await context.charge(request)
            self._check_head()
        except ViTError:
            raise
        except Exception:
            raise self._unexpected() from None

    def _check_head(self) -> None:
        """Refuse a request whose headers show that it can't be answered."""
        request = self._request
        assert self._route is not None
        self._limit = limit = self._route.body_limit(request)
        declared = request.headers.get(b"content-length")
        if declared is not None and int(declared) > limit.max_bytes:
            raise UploadTooLarge(limit.reported_bytes)
        if b"content-encoding" in request.headers:
            self._codings = codings_of(request.joined(b"content-encoding"))
        if has_digests(request):
            self._digests = digests_of(request)

    def receive(self, count: int) -> None:
        """Reserve memory for so many further bytes of the body.

        Raises:
            UploadTooLarge: The body exceeds its limit.
            Overloaded: The process has no memory left for uploads.
        """
        size = self._request.received_bytes + count
        if size > self._limit.max_bytes:
            raise UploadTooLarge(self._limit.reported_bytes)
        self._context.memory.reserve(self._request, count)
        self._request.received_bytes = size

    async def handle(self, body: bytes) -> Response:
        """Return the response; a failure is one, too."""
        request = self._request
        request.body = body
        request.start_clock(time.monotonic(), self._context.timeout_s)
        assert self._route is not None
        try:
            if self._digests:
                await check_digests(body, self._digests)
            if self._codings:
                await self._context.memory.decode(request, self._codings, self._limit)
            return await self._route.handler(request)
        except ViTError as error:
            return self.fail(error)
        except Exception:
            return self.fail(self._unexpected())

    def find(self, body: bytes) -> Response | None:
        """Return the response of a request that was admitted if it is cached, without waiting for anything."""
        assert self._route is not None
        if self._route.find is None or self._codings or self._digests:
            return None
        try:
            return self._route.find(self._request, body)
        except ViTError as error:
            return self.fail(error)
        except Exception:
            return self.fail(self._unexpected())

    def find_whole(self, body: bytes) -> Response | None:
        """Admit a request whose whole body is here, and return the response if that is cached; see `answer`."""
        context = self._context
        if context.charge is not None and context.limits is None:
            return None
        try:
            if context.check_key is not None:
                context.check_key(self._request)
            if context.limits is not None and not context.limits.charge_now(self._request):
                return None
            self._check_head()
            self.receive(len(body))
        except ViTError as error:
            return self.fail(error)
        except Exception:
            return self.fail(self._unexpected())
        self._is_admitted = True
        return self.find(body)

    def repeat(self, response: Response) -> Repeat | None:
        """Return what answers further requests with this head, whose response was found; None: each is different.

        That is so if other servers are asked before each is charged, if its client has sent an id, or if its route says
        so.
        """
        route, request = self._route, self._request
        generation = self._generation
        if generation is None or route is None or route.repeat is None:
            return None
        limits = self._context.limits
        if (self._context.charge is not None and limits is None) or REQUEST_ID in request.headers:
            return None
        finder = route.repeat(request, response)
        if finder is None:
            return None
        counters = [one.hit_counter(request) for one in generation.hit_observers]
        charge = None if limits is None else _charge_of(limits, request)
        admission = request.admission
        request.admission = admission._replace(headers=without_limits(admission.headers))
        lines = self.header_lines(response).replace(b"%", b"%%")
        request.admission = admission
        lines = lines.replace(b"content-length: %d\r\n" % len(response.body), b"content-length: %d\r\n")
        lines = lines.replace(request.id + b"\r\n", b"%b\r\n") + b"\r\n"
        record = HitRecorder(request, generation.observers).record if generation.observers else None
        max_bytes = self._limit.max_bytes
        return Repeat(finder, counters, lines, generation=generation, max_bytes=max_bytes, record=record, charge=charge)

    async def answer(self, body: bytes) -> Response:
        """Admit a request whose whole body is here, unless `find_whole` has, handle it, and return the response."""
        if not self._is_admitted:
            try:
                await self.admit()
                self.receive(len(body))
            except ViTError as error:
                return self.fail(error)
        return await self.handle(body)

    def fail(self, error: ViTError) -> Response:
        """Return the response for a failure.

        Its traceback goes: it refers to the frames that the exception passed, which hold the upload, and the exception
        by their futures. Such a cycle would stay until the next full garbage collection.
        """
        response = error_response(error.with_traceback(None), self._request)
        error_body = None if self._route is None else self._route.error_body
        if error_body is None:
            return response
        return Response(error.status, error_body(error), response.headers, response.outcomes)

    def header_lines(self, response: Response) -> bytes:
        """Return the lines of all headers of a response but those that belong to the connection."""
        request, cors_headers = self._request, self._context.cors_headers
        lines = response.header_lines(request)
        if request.wait_s is not None:
            lines += b"preference-applied: wait=%d\r\n" % request.wait_s  # RFC 7240, section 3
        return lines if cors_headers is None else lines + header_lines(cors_headers(request))

    def end(self, response: Response | None) -> None:
        """Record the outcome, and free the memory. To be called once; None: the client left first."""
        request = self._request
        self._context.memory.release(request)
        if response is None:
            self._context.observe(Exchange(request, CLIENT_LEFT, time.monotonic()))
        else:
            self._context.observe(Exchange(request, response.status, time.monotonic(), response.outcomes))

    def release(self) -> None:
        """Free the memory, instead of `end`: the request was recorded otherwise."""
        self._context.memory.release(self._request)
        if self._generation is not None:
            for one in self._generation.releasing:
                one.release(self._request)

    def _unexpected(self) -> ViTError:
        """Log the exception that is being handled."""
        logger.exception("request %s failed unexpectedly", self._request.id.decode())
        return InternalError("The server failed. Its log says why.")


def _charge_of(limits: Limits, request: Request) -> ChargeHit:
    """Return what charges the clients of requests with the same head."""
    return lambda peer: limits.charge_hit(request.client_at(peer))
