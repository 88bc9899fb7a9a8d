"""The sockets that the HTTP processes listen on. Knows nothing of what is served on them."""

from __future__ import annotations

import socket


class Listeners:
    """A bound socket for each HTTP process, all on one address.

    The kernel spreads connections over them (SO_REUSEPORT). With one shared socket, a single process sometimes gets all
    keep-alive connections while the others idle.

    Raises:
        OSError: The address is not available, for example because another server listens on it.
    """

    def __init__(self, host: str, port: int, count: int) -> None:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._kind, self._address = (family, kind, protocol), address
        # With SO_REUSEPORT, a second server of the same user would silently get a share of the connections.
        with socket.socket(*self._kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(self._address)
        self._sockets = {number: self._bind() for number in range(count)}

    def _bind(self) -> socket.socket:
        listener = socket.socket(*self._kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(self._address)
        return listener

    def get(self, number: int) -> socket.socket:
        """Return the socket of the HTTP process with this number; a new one if the last was closed."""
        if number not in self._sockets:
            self._sockets[number] = self._bind()
        return self._sockets[number]

    def all(self) -> dict[int, socket.socket]:
        """Return the open sockets by the number of their HTTP process."""
        return dict(self._sockets)

    def close(self, number: int) -> None:
        """Close this process's copy: while it is open, it receives connections that are never accepted."""
        self._sockets.pop(number).close()

    def keep(self, number: int) -> socket.socket:
        """Return the socket with this number and close all others. For the HTTP process, once it is forked."""
        for other in set(self._sockets) - {number}:
            self.close(other)
        return self._sockets[number]
