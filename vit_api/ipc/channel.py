"""Messages with file descriptors between the main process and an HTTP process. Knows nothing of their meaning.

A message is pickled into anonymous memory, whose descriptor comes first; so none is too long for a packet. Both ends
belong to one server and are inherited, never opened by a path: no other process can send.
"""

from __future__ import annotations

import array
import os
import pickle
import socket
from collections.abc import Sequence
from typing import Any

_MAX_DESCRIPTORS = 200
"""In one packet; Linux takes 253, see unix(7)."""

_MORE, _LAST = b"+", b"."


class ChannelClosed(Exception):
    """The other end is closed, or takes no more messages."""


class Channel:
    """One end. Neither `send` nor `receive` ever blocks.

    Args:
        end: A socket of packets (SOCK_SEQPACKET).
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._descriptors: list[int] = []

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return both ends of a new channel."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """Return the file descriptor, for event loops and `select`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send a message, and duplicates of file descriptors.

        Raises:
            ChannelClosed: The other end is closed, or has not read for long.
        """
        memory = os.memfd_create("vit-api-message", os.MFD_CLOEXEC)
        try:
            with os.fdopen(memory, "wb", closefd=False) as file:
                pickle.dump(message, file)
            every = [memory, *descriptors]
            for start in range(0, len(every), _MAX_DESCRIPTORS):
                part = array.array("i", every[start : start + _MAX_DESCRIPTORS])
                kind = _MORE if start + _MAX_DESCRIPTORS < len(every) else _LAST
                self._socket.sendmsg([kind], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, part)])
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        finally:
            os.close(memory)

    def receive(self) -> tuple[Any, list[int]] | None:
        """Return the next message and its descriptors, which the caller owns; None if there is none yet.

        Raises:
            ChannelClosed: The other end is closed.
        """
        size = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
        while True:
            try:
                kind, control, _, _ = self._socket.recvmsg(1, size, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return None
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not kind:
                raise ChannelClosed("The other end is closed.")
            for _level, _type, data in control:
                self._descriptors += array.array("i", data)
            if kind == _LAST:
                memory, *descriptors = self._descriptors
                self._descriptors = []
                with os.fdopen(memory, "rb") as file:
                    file.seek(0)  # the sender's descriptor shares the position
                    return pickle.load(file), descriptors
