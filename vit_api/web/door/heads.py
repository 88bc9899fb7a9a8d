"""Request heads: the request line and the headers, from bytes to what they mean for the connection. No I/O.

Strict, because a proxy in front may read a lax head differently, and one request would become two (request smuggling):
what h11 refuses is refused here, and so are line folding, bare CR or LF, and any doubt about the length of the body.
A differential test compares the two parsers.

Not httptools: it drops the body of a request with `Upgrade`, can't stop between two pipelined requests, and collects an
unfinished header without a limit.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from vit_api.errors import (
    BadRequest,
    ExpectationFailed,
    HeadersTooLarge,
    MethodNotAllowed,
    UnsupportedTransfer,
    UnsupportedVersion,
    UriTooLong,
    ViTError,
)
from vit_api.web.door.application import RepeatedRequests

MAX_HEAD_BYTES = 64 * 1024
"""Maximum size of the request line, the headers, and the trailers of a chunked body together."""
MAX_FIELDS = 100
"""Maximum number of headers and trailers of a request."""
HEAD_END = b"\r\n\r\n"
_LINE_END = b"\r\n"

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, section 5.6.2
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/([0-9]\.[0-9])\r\n")
# Without a second quantifier for the spaces around a value: backtracking would take quadratic time.
FIELD = re.compile(rb"^(" + _TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n", re.MULTILINE)
_NEVER_IN_HEADS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r[^\n]")
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
# The characters of RFC 3986's `host [":" port]`: a proxy may route by what another reader makes of others.
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
_MAX_LENGTH_DIGITS = 18
_ONCE = (b"host", b"content-length", b"transfer-encoding")
_SPACE = b" \t"


class HeadMemo:
    """What is known of the requests with one head, whatever the length of their bodies.

    Attributes:
        repeat: Answers further ones; None if none was answered from the cache, or each is different.
    """

    __slots__ = ("repeat",)

    def __init__(self) -> None:
        self.repeat: RepeatedRequests | None = None


class Head:
    """The head of a request. Not to be changed: several requests may share it.

    Attributes:
        method: The method, as sent.
        raw_path: The path, as sent.
        path: The path, decoded.
        query: The query string, as sent.
        version: `1.1` or `1.0`.
        headers: Lower-case names and values, in their order.
        values: The headers by name; of a repeated one the last.
        length: The announced length of the body, in bytes; 0 for a chunked one.
        is_chunked: Whether the body is chunked.
        keeps_alive: Whether the client may send further requests on the connection.
        expects_continue: Whether the client waits for a `100 Continue` before it sends the body.
        size: The size of the head, in bytes.
        memo: What is known of other requests with it.
    """

    def __init__(
        self, method: str, target: tuple[bytes, bytes], version: str, headers: list[tuple[bytes, bytes]], size: int
    ) -> None:
        self.method = method
        self.size = size
        self.memo = HeadMemo()
        self.raw_path, self.query = target
        path = self.raw_path.decode("ascii")
        self.path = unquote(path) if "%" in path else path
        self.version = version
        self.headers = headers
        self.values = values = dict(headers)
        if len(values) != len(headers):
            _refuse_repetition(headers)
        is_current = version == "1.1"
        if is_current and b"host" not in values:
            raise BadRequest("The request has no Host header. HTTP/1.1 requires one.")
        if _HOST.fullmatch(values.get(b"host", b"")) is None:
            raise BadRequest("The Host header is malformed. Send the name of the server, and its port.")
        self.is_chunked = b"transfer-encoding" in values and _is_chunked(values, is_current)
        self.length = _length_of(values[b"content-length"]) if b"content-length" in values else 0
        self.keeps_alive = is_current if b"connection" not in values else _keeps_alive(headers, is_current)
        # A client of HTTP/1.0 can't expect anything; RFC 9110, section 10.1.1.
        self.expects_continue = b"expect" in values and is_current and _expects_continue(headers) and self.has_body

    @property
    def has_body(self) -> bool:
        """Whether a body is announced."""
        return self.is_chunked or self.length > 0

    def with_length(self, length: int, size: int) -> Head:
        """Return the same head, but for the announced length of the body; neither it nor this one's is 0."""
        sent = (b"content-length", b"%d" % length)
        head = Head.__new__(Head)
        head.__dict__.update(
            self.__dict__,
            length=length,
            size=size,
            headers=[sent if header[0] == sent[0] else header for header in self.headers],
            values=self.values | {sent[0]: sent[1]},
        )
        return head


def parse_head(data: bytes | bytearray, start: int, end: int) -> Head:
    """Return the head in `data[start:end]`.

    Args:
        data: Bytes of a connection.
        start: Where the request line begins.
        end: Where the empty line after the headers begins.

    Raises:
        ViTError: It is not a request that this server understands; the connection must be closed.
    """
    line = _REQUEST_LINE.match(data, start, end)
    if line is None:
        raise BadRequest("The request line is malformed. Send METHOD /path HTTP/1.1.")
    method, target, version = line.groups()
    if version not in (b"1.1", b"1.0"):
        raise UnsupportedVersion("The version of HTTP is not supported. Use HTTP/1.1.")
    fields = FIELD.findall(data, line.end(), end)
    if len(fields) != data.count(b"\n", line.end(), end):
        raise BadRequest("A header is malformed. Send each as `Name: value` on a line of its own.")
    if end - start > MAX_HEAD_BYTES or len(fields) > MAX_FIELDS:
        raise too_large(line.end() - start)
    headers = [(name.lower(), value.strip(_SPACE)) for name, value in fields]
    return Head(method.decode(), _split(method, target), version.decode(), headers, end + len(_LINE_END) - start)


def check_incomplete(data: bytes | bytearray, start: int, checked: int) -> None:
    """Refuse the beginning of a head as soon as nothing can make a good one of it.

    Args:
        data: Bytes of a connection, without the end of the head.
        start: Where the request line begins.
        checked: How far an earlier call has looked.

    Raises:
        ViTError: It is malformed, or too large.
    """
    if _NEVER_IN_HEADS.search(data, max(start, checked - 1)):
        raise BadRequest("The request is not HTTP/1.1, or its head has control characters or bare line breaks.")
    line_end = data.find(b"\n", start, start + MAX_HEAD_BYTES)
    if len(data) - start > MAX_HEAD_BYTES:
        raise too_large(line_end - start if line_end >= 0 else MAX_HEAD_BYTES)
    if line_end >= checked and _REQUEST_LINE.match(data, start) is None:
        raise BadRequest("The request line is malformed. Send METHOD /path HTTP/1.1.")
    if data.count(b"\n", start) > MAX_FIELDS + 1:
        raise HeadersTooLarge(f"The request has more than {MAX_FIELDS} headers. Send fewer.")


def too_large(line_bytes: int) -> ViTError:
    """Return the error for a head that exceeds a limit, given the size of its request line."""
    if line_bytes >= MAX_HEAD_BYTES:
        return UriTooLong(f"The request line exceeds {MAX_HEAD_BYTES // 1024} KiB. Send a shorter path and query.")
    return HeadersTooLarge(
        f"The headers exceed {MAX_HEAD_BYTES // 1024} KiB, or there are more than {MAX_FIELDS}. Send fewer."
    )


def _split(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    """Return path and query of a request target; see RFC 9112, section 3.2."""
    if not target.startswith(b"/"):
        authority = _ABSOLUTE.match(target)
        if authority is not None:
            target = target[authority.end() :]
            if not target.startswith(b"/"):
                target = b"/" + target
        elif method == b"CONNECT":
            raise MethodNotAllowed("This server is no proxy, so it does not support CONNECT.")
        elif target != b"*" or method != b"OPTIONS":
            raise BadRequest("The request target is malformed. Send a path that begins with a slash.")
    if b"#" in target:
        raise BadRequest("The request target has a fragment. Leave out what follows the `#`.")
    path, _, query = target.partition(b"?")
    return path, query


def _refuse_repetition(headers: list[tuple[bytes, bytes]]) -> None:
    names = [name for name, _ in headers]
    for name in _ONCE:
        if names.count(name) > 1:
            raise BadRequest(f"The header {name.decode().title()} is repeated. Send it once.")


def _is_chunked(values: dict[bytes, bytes], is_current: bool) -> bool:
    if b"content-length" in values or not is_current:
        raise BadRequest("Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0. Leave one of them out.")
    if values[b"transfer-encoding"].lower() != b"chunked":
        raise UnsupportedTransfer("The transfer encoding is not supported. Use `chunked`, or send Content-Length.")
    return True


def _length_of(value: bytes) -> int:
    if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
        raise BadRequest("Content-Length is malformed. Send the size of the body in bytes.")
    return int(value)


def _members(headers: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Return the members of a list, which may be spread over several headers, in lower case."""
    members = b",".join(value for its_name, value in headers if its_name == name).lower().split(b",")
    return [member.strip(_SPACE) for member in members]


def _expects_continue(headers: list[tuple[bytes, bytes]]) -> bool:
    expected = set(_members(headers, b"expect")) - {b""}
    if not expected <= {b"100-continue"}:
        raise ExpectationFailed("The Expect header is not supported. Send `100-continue`, or leave it out.")
    return bool(expected)


def _keeps_alive(headers: list[tuple[bytes, bytes]], is_current: bool) -> bool:
    options = _members(headers, b"connection")
    return b"close" not in options and (is_current or b"keep-alive" in options)
