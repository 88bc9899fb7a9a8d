"""Where requests begin and end in the bytes of a connection. No I/O."""

from __future__ import annotations

from vit_api.errors import BadRequest
from vit_api.web.door.chunks import ChunkedBody
from vit_api.web.door.head_cache import HeadCache
from vit_api.web.door.heads import HEAD_END, Head, check_incomplete

_BLANK_LINE = b"\r\n"
_MAX_BLANK_LINES = 4


class HeadReader:
    """The reader of one connection's heads.

    Args:
        cache: Parses them.
    """

    __slots__ = ("_blank_lines", "_cache", "_checked")

    def __init__(self, cache: HeadCache) -> None:
        self._cache = cache
        self._blank_lines = 0
        self._checked = 0

    def read(self, data: bytes | bytearray, position: int) -> tuple[Head | None, int]:
        """Return the next head, and the position after what was read.

        Args:
            data: Bytes of the connection; those that were not read are to be passed again, with what follows them.
            position: Where to begin.

        Returns:
            The head, None if it is not complete; and the position.

        Raises:
            ViTError: It is malformed; the connection must be closed.
        """
        while data.startswith(_BLANK_LINE, position):  # RFC 9112, section 2.2
            self._blank_lines += 1
            if self._blank_lines > _MAX_BLANK_LINES:
                raise BadRequest("There are empty lines instead of a request.")
            position += len(_BLANK_LINE)
        end = data.find(HEAD_END, max(position, position + self._checked - 3))
        if end < 0:
            check_incomplete(data, position, position + self._checked)
            self._checked = len(data) - position
            return None, position
        self._checked = self._blank_lines = 0
        return self._cache.parse(data, position, end + 2), end + len(HEAD_END)


class SizedBody:
    """The reader of a body whose length was announced.

    Args:
        length: Its length in bytes.

    Attributes:
        rest_bytes: How much of it has not arrived.
        is_complete: Whether the body has ended.
    """

    __slots__ = ("_content", "is_complete", "rest_bytes")

    def __init__(self, length: int) -> None:
        self.rest_bytes = length
        self.is_complete = length == 0
        self._content: bytes | bytearray = b""

    def feed(self, data: bytes | bytearray, start: int) -> int:
        """Read what arrived; see `ChunkedBody.feed`."""
        end = min(start + self.rest_bytes, len(data))
        self._content = data[start:end]
        self.rest_bytes -= end - start
        self.is_complete = self.rest_bytes == 0
        return end

    def take(self) -> bytes | bytearray:
        """Return what the last call of `feed` read."""
        content, self._content = self._content, b""
        return content

    def skip(self, count: int) -> None:
        """Take note of so many bytes that were read elsewhere."""
        self.rest_bytes -= count
        self.is_complete = self.rest_bytes == 0


Body = SizedBody | ChunkedBody


def body_of(head: Head) -> Body:
    """Return the reader of a request's body."""
    return ChunkedBody(head.size, len(head.headers)) if head.is_chunked else SizedBody(head.length)
