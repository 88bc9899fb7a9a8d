"""What the door needs of the application behind it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from vit_api.errors import ViTError
from vit_api.web.responses import Response

if TYPE_CHECKING:
    from vit_api.web.door.known_requests import LoopTurn


class KnownAnswer(Protocol):
    """Answers further requests with the same head and body as one that was answered."""

    def render(self, began_at: float, turn: LoopTurn, client: tuple[str, int] | None) -> bytes | None:
        """Return the response to the next one, but for the headers that all have in common; None: find out again.

        Args:
            began_at: When the request was begun, in seconds of the monotonic clock.
            turn: The current turn, which is told when the response was ready.
            client: The address and port of the client.
        """

    def count(self) -> None:
        """Record those that were answered since the last call."""


class RepeatedRequests(Protocol):
    """Requests with a head that was admitted before.

    Attributes:
        charge: Charges the client of each that is found; None: nothing does.
    """

    charge: Callable[[tuple[str, int] | None], bytes | None] | None

    def find(self, body: bytes, client: tuple[str, int] | None) -> bytes | None:
        """Return the response to the next one, but for the headers that all have in common, if it is cached.

        Args:
            body: Its body.
            client: The address and port of its client.
        """

    def end(self, received_bytes: int, client: tuple[str, int] | None) -> None:
        """Record the outcome of the one that was found last."""

    def known(self, received_bytes: int) -> KnownAnswer | None:
        """Return what answers further requests like the one that was found last, given the size of its body."""


class HotRequest(Protocol):
    """A request of a hot route, which the door answers without ASGI."""

    def admit(self) -> Coroutine[Any, Any, None]:
        """Decide whether the request is answered, before any of its body is read.

        Raises:
            ViTError: Why it is not.
        """

    def receive(self, count: int) -> None:
        """Reserve memory for so many further bytes of the body.

        Raises:
            ViTError: The body is too large, or memory is used up.
        """

    def handle(self, body: bytes) -> Coroutine[Any, Any, Response]:
        """Return the response; a failure is one, too."""

    def find(self, body: bytes) -> Response | None:
        """Return the response of a request that was admitted if it is cached, without waiting for anything."""

    def find_whole(self, body: bytes) -> Response | None:
        """Admit a request whose whole body is here, and return the response if that is cached; see `answer`."""

    def answer(self, body: bytes) -> Coroutine[Any, Any, Response]:
        """Admit a request whose whole body is here, unless `find_whole` has, handle it, and return the response."""

    def fail(self, error: ViTError) -> Response:
        """Return the response for a failure."""

    def repeat(self, response: Response) -> RepeatedRequests | None:
        """Return what answers further requests with this head, whose response was found; None: each is different."""

    def header_lines(self, response: Response) -> bytes:
        """Return the lines of all headers of a response, but those that belong to the connection."""

    def end(self, response: Response | None) -> None:
        """Record the outcome, once; None: the client left first."""

    def release(self) -> None:
        """Free its memory, instead of `end`: it was answered, and recorded, by what is known of its head."""


class DoorApplication(Protocol):
    """The application of a process."""

    def open(self, scope: dict[str, Any]) -> HotRequest | None:
        """Return a request by its ASGI scope; None if its route is not hot."""

    def refuse(self, scope: dict[str, Any]) -> HotRequest:
        """Return a request that can only fail: its head is malformed, and the scope has what is known of it."""
