"""Chunked bodies, decoded while they arrive; RFC 9112, section 7.1. No I/O."""

from __future__ import annotations

import enum
import re

from vit_api.errors import BadRequest
from vit_api.web.door.heads import FIELD, MAX_FIELDS, MAX_HEAD_BYTES, too_large

# No chunk of 4 GiB or more is taken, as no upload is. Zeros before its size count as an extension.
_SIZE = re.compile(rb"0{0,64}([0-9A-Fa-f]{1,8})([ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_PLAIN_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_PLAIN_LINE_BYTES = 10
"""Maximum size of a chunk's line without extensions."""
_FREE_CHUNKS = 16_384
_MIN_MEAN_BYTES = 64
"""Beyond the free ones, chunks must have so many bytes on average: each one takes some time of the event loop."""


_LINE_BREAK = b"\r\n"


class _Expected(enum.Enum):
    SIZE = enum.auto()
    CONTENT = enum.auto()
    LINE_BREAK = enum.auto()
    TRAILER = enum.auto()


class ChunkedBody:
    """The decoder of one body.

    Args:
        head_bytes: The size of the request's head: trailers and extensions must fit into what is left.
        fields: The number of its headers.

    Attributes:
        content: What was decoded and not yet taken.
        is_complete: Whether the body has ended.
    """

    __slots__ = ("_chunks", "_expected", "_extra_bytes", "_fields", "_left", "_line", "_size", "content", "is_complete")

    def __init__(self, head_bytes: int, fields: int) -> None:
        self.content = bytearray()
        self.is_complete = False
        self._expected = _Expected.SIZE
        self._left = 0
        self._line = b""
        self._extra_bytes = head_bytes
        self._fields = fields
        self._chunks = 0
        self._size = 0

    def feed(self, data: bytes | bytearray, start: int) -> int:
        """Decode what arrived.

        Args:
            data: Bytes of a connection.
            start: Where the body goes on.

        Returns:
            The position after the body, or after the data.

        Raises:
            ViTError: It is malformed; the connection must be closed.
        """
        position, end = start, len(data)
        while position < end and not self.is_complete:
            if self._expected is _Expected.SIZE and not self._line:
                position = self._take_whole_chunks(data, position)
                if position == end:
                    break
            if self._expected is _Expected.CONTENT:
                position = self._take_content(data, position)
                continue
            line_end = data.find(b"\n", position) + 1
            line = self._line + data[position : line_end or end]
            if len(line) + self._extra_bytes > MAX_HEAD_BYTES:
                raise too_large(0)
            if not line_end:
                self._keep_incomplete(line)
                return end
            self._line = b""
            self._take_line(line)
            position = line_end
        return position

    def take(self) -> bytearray:
        """Return what was decoded since the last call."""
        content, self.content = self.content, bytearray()
        return content

    def _take_whole_chunks(self, data: bytes | bytearray, position: int) -> int:
        """Decode chunks without extensions that are here as a whole; return the position of the first other one."""
        pieces: list[bytes | bytearray] = []
        while (line := _PLAIN_SIZE.match(data, position)) is not None:
            start, size = line.end(), int(line[1], 16)
            content_end = start + size
            if size == 0 or not data.startswith(_LINE_BREAK, content_end):
                break
            self._count_chunk(size)
            pieces.append(data[start:content_end])
            position = content_end + len(_LINE_BREAK)
        self.content += b"".join(pieces)
        return position

    def _take_content(self, data: bytes | bytearray, position: int) -> int:
        count = min(self._left, len(data) - position)
        self.content += memoryview(data)[position : position + count]
        self._left -= count
        if self._left == 0:
            self._expected = _Expected.LINE_BREAK
        return position + count

    def _keep_incomplete(self, line: bytes) -> None:
        if self._expected is _Expected.LINE_BREAK and line != b"\r":
            raise _malformed()
        self._line = line

    def _take_line(self, line: bytes) -> None:
        if self._expected is _Expected.SIZE:
            self._begin_chunk(line)
        elif self._expected is _Expected.LINE_BREAK:
            if line != _LINE_BREAK:
                raise _malformed()
            self._expected = _Expected.SIZE
        elif line == _LINE_BREAK:
            self.is_complete = True
        else:
            self._fields += 1
            self._extra_bytes += len(line)
            if self._fields > MAX_FIELDS:
                raise too_large(0)
            if FIELD.fullmatch(line) is None:
                raise BadRequest("A trailer is malformed. Send each as `Name: value` on a line of its own.")

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise _malformed()
        if match[2] or len(line) > _PLAIN_LINE_BYTES:
            self._extra_bytes += len(line)
        self._left = int(match[1], 16)
        self._count_chunk(self._left)
        self._expected = _Expected.CONTENT if self._left else _Expected.TRAILER

    def _count_chunk(self, size: int) -> None:
        self._chunks += 1
        self._size += size
        if self._chunks > _FREE_CHUNKS + self._size // _MIN_MEAN_BYTES:
            raise BadRequest("The body has too many small chunks. Send larger ones.")


def _malformed() -> BadRequest:
    return BadRequest("The chunked body is malformed. Send each chunk as its size in hexadecimal, then its bytes.")
