"""Parses multipart forms (RFC 7578) as real clients write them, from a body that is in memory.

Parsers of streams are stricter than servers can be: clients end lines with LF alone, leave out the last `--`, and add
parts without a name. Knows nothing of which field means what.
"""

from __future__ import annotations

import quopri
import re
from collections.abc import Iterator
from typing import NamedTuple

from multipart import parse_content_disposition

from vit_api.decoding.uploads import decode_base64
from vit_api.errors import BadRequest

_BOUNDARY = re.compile(rb';\s*boundary\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*))', re.IGNORECASE | re.DOTALL)
_DELIMITER_END = re.compile(rb"(--)?[ \t]*(\r?\n|\Z)")
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_FOLDED = re.compile(rb"\r?\n[ \t]+")
_EMPTY_LINES = (b"\r\n\r\n", b"\n\n")
_MAX_BOUNDARY_BYTES = 256
_MAX_SHOWN = 64
_MAX_HEADER_BYTES = 16 * 1024
"""Maximum size of the headers of one part, in which file names may be long."""


class FormPart(NamedTuple):
    """One part of a form that has a name or is a file.

    Attributes:
        name: The field's name; empty if only the file has one.
        filename: The file's name; None if the part is not sent as a file.
        content: Its content.
    """

    name: str
    filename: str | None
    content: bytes


def parse_form(body: bytes, content_type: bytes, *, max_parts: int) -> list[FormPart]:
    """Return the parts of a form that have names or are files, in order.

    Args:
        body: The whole body.
        content_type: The request's `Content-Type`, which has the boundary.
        max_parts: Maximum number of parts, including those without names.

    Raises:
        BadRequest: The form is malformed or truncated, or has too many parts.
    """
    boundary = _boundary_of(content_type)
    parts = []
    for number, (start, end) in enumerate(_split(body, boundary)):
        if number >= max_parts:
            raise BadRequest(f"The form has too many parts. Send at most {max_parts}.")
        parsed = _parse_part(body, start, end)
        if parsed is not None:
            parts.append(parsed)
    return parts


def _boundary_of(content_type: bytes) -> bytes:
    found = _BOUNDARY.search(content_type)
    quoted, plain = found.groups(b"") if found else (b"", b"")
    boundary = _QUOTED_PAIR.sub(rb"\1", quoted) or plain.strip()
    if not boundary:
        raise BadRequest(
            "The form's Content-Type has no boundary. Don't set that header yourself: your HTTP library"
            " adds it with the boundary, as `fetch` does for a FormData."
        )
    if len(boundary) > _MAX_BOUNDARY_BYTES:
        raise BadRequest(f"The form's boundary is too long. Use at most {_MAX_BOUNDARY_BYTES} bytes.")
    return boundary


def _split(body: bytes, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each part between the delimiters, with its headers, begins and ends."""
    # All lines end as the first delimiter does: with CRLF, a line feed alone belongs to a file.
    start, is_last, line_end = _find_delimiter(body, b"--" + boundary, 0)[1:]
    if start < 0:
        shown = boundary[:_MAX_SHOWN].decode("latin-1")
        raise BadRequest(
            f"The form is malformed: no line of the body is `--{shown}`, as the boundary of its Content-Type demands."
        )
    delimiter = line_end + b"--" + boundary
    while not is_last:
        # A part without content ends with the line end of the delimiter before it.
        end, next_start, is_last, _ = _find_delimiter(body, delimiter, start - len(line_end))
        if end < 0:
            if body[start:].strip():
                raise _unfinished(body[start:], boundary)
            return  # the last delimiter lacks its `--`
        yield start, max(start, end)
        start = next_start


def _unfinished(rest: bytes, boundary: bytes) -> BadRequest:
    """Return the error for a last part without a delimiter after it."""
    if re.search(re.escape(b"--" + boundary) + _DELIMITER_END.pattern, rest):
        return BadRequest("The form is malformed: a boundary does not begin a line. End each part with CRLF.")
    return BadRequest("The form is truncated: its last boundary is missing.")


def _find_delimiter(body: bytes, delimiter: bytes, start: int) -> tuple[int, int, bool, bytes]:
    """Return where a delimiter begins and ends, whether it is the last one, and its line end; or -1, -1."""
    while (found := body.find(delimiter, start)) >= 0:
        rest = _DELIMITER_END.match(body, found + len(delimiter))
        if rest is not None and (found == 0 or delimiter[:1] != b"-" or body[found - 1 : found] == b"\n"):
            return found, rest.end(), bool(rest[1]), rest[2]
        start = found + 1
    return -1, -1, False, b""


def _parse_part(body: bytes, start: int, end: int) -> FormPart | None:
    """Return a part, or None if it has no name and is no file."""
    head, content_start = _split_head(body, start, end)
    name: str | None = None
    filename: str | None = None
    encoding = b""
    for line in head.splitlines():
        field, _, value = line.partition(b":")
        match field.strip().lower():
            case b"content-disposition":
                _, name, filename = parse_content_disposition(_text(value.strip()))
            case b"content-transfer-encoding":
                encoding = value.strip().lower()
    if name is None and filename is None:
        return None
    name, content = name or "", body[content_start:end]
    return FormPart(name, filename, _decode(content, encoding, name) if encoding else content)


def _split_head(body: bytes, start: int, end: int) -> tuple[bytes, int]:
    """Return the headers of a part, which end at the first empty line, and where its content begins."""
    if body.startswith((b"\r\n", b"\n"), start):
        return b"", start
    stop = min(end, start + _MAX_HEADER_BYTES)
    found = [(at, at + len(line)) for line in _EMPTY_LINES if (at := body.find(line, start, stop)) >= 0]
    head_end, content_start = min(found, default=(stop, stop))
    if not found and stop < end:
        raise BadRequest("The form is malformed: the headers of a part do not end, or are too long.")
    return _FOLDED.sub(b" ", body[start:head_end]), content_start


def _decode(content: bytes, encoding: bytes, name: str) -> bytes:
    """Undo a `Content-Transfer-Encoding`, which RFC 7578, section 4.7, deprecates, but libraries for mail still add."""
    if encoding == b"base64":
        return decode_base64(content.decode("latin-1"), name[:_MAX_SHOWN])
    return quopri.decodestring(content) if encoding == b"quoted-printable" else content


def _text(value: bytes) -> str:
    """Return a header's text; any bytes are accepted, since a form must not be refused for a file's name."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
