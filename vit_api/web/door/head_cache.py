"""Heads that were parsed before: clients send the same one again and again, but for its Content-Length. No I/O."""

from __future__ import annotations

import re

from vit_api.web.door.heads import Head, parse_head

MAX_HEADS = 256
_MAX_HEAD_BYTES = 2048
# In the forms that clients send; any other is parsed. A body of length 0 is none, so it is not like the others.
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([1-9][0-9]{0,17})(?=\r\n)")


class HeadCache:
    """The last heads with an announced length, by their bytes, and by those without it. For one process.

    A cached head is well-formed and has one line with a length. With that line in another place, or another length in
    it, it stays so: what is refused without the cache is refused with it.
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}
        self._with_lengths: dict[bytes, Head] = {}

    def __len__(self) -> int:
        return max(len(self._heads), len(self._with_lengths))

    def parse(self, data: bytes | bytearray, start: int, end: int) -> Head:
        """Return what `parse_head` returns, or raise what it raises."""
        if end - start > _MAX_HEAD_BYTES:
            return parse_head(data, start, end)
        whole = bytes(data[start:end])
        head = self._with_lengths.get(whole)
        if head is None:
            head = self._parse(whole)
            if head.length:
                _keep(self._with_lengths, whole, head)
        return head

    def _parse(self, whole: bytes) -> Head:
        announced = _LENGTH.search(whole)
        if announced is None:
            return parse_head(whole, 0, len(whole))
        line_start, line_end = announced.span()
        key = whole[:line_start] + whole[line_end:]
        head = self._heads.get(key)
        if head is None:
            head = parse_head(whole, 0, len(whole))
            _keep(self._heads, key, head)
            return head
        length = int(announced[1])
        return head if head.length == length else head.with_length(length, len(whole) + 2)


def _keep(heads: dict[bytes, Head], key: bytes, head: Head) -> None:
    """Cache a head in place of the oldest; per-request ids make heads of which none occurs twice."""
    if len(heads) >= MAX_HEADS:
        del heads[next(iter(heads))]
    heads[key] = head
