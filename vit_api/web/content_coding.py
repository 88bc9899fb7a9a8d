"""Decodes compressed bodies: `Content-Encoding` of RFC 9110, section 8.4. Knows nothing of what is in them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

from vit_api.errors import BadRequest, UnsupportedEncoding, UploadTooLarge
from vit_api.web.requests import BodyLimit

_IDENTITY = b"identity"
_MAX_CODINGS = 4
_GZIP_BITS = 16 + zlib.MAX_WBITS
"""Makes zlib read gzip's header and checksum; see `inflateInit2` in zlib's manual."""
_GZIP_START = b"\x1f\x8b"


def codings_of(header: bytes) -> list[bytes]:
    """Return the codings of a `Content-Encoding` header in the order in which they were applied, without `identity`.

    Raises:
        UnsupportedEncoding: One is not supported, or there are too many.
    """
    codings = [coding for one in header.lower().split(b",") if (coding := one.strip()) not in (b"", _IDENTITY)]
    for coding in codings:
        if coding not in _DECODERS:
            raise UnsupportedEncoding(
                f"Content-Encoding: {coding[:32].decode('latin-1')} is not supported."
                " Send the body uncompressed, or as gzip or deflate."
            )
    if len(codings) > _MAX_CODINGS:
        raise UnsupportedEncoding("Content-Encoding has too many codings. Compress the body once, or not at all.")
    return codings


def decode(body: bytes, codings: Sequence[bytes], limit: BodyLimit) -> bytes:
    """Return a body without its codings.

    Args:
        body: The body as it was sent.
        codings: See `codings_of`.
        limit: The maximum size of each stage's result; no more than that is ever held.

    Raises:
        BadRequest: The body is not of its coding, is truncated, or has something behind it.
        UploadTooLarge: The result exceeds the limit.
    """
    for coding in reversed(codings):
        try:
            body = _DECODERS[coding](body, limit)
        except zlib.error as error:
            reason = f": it {error}" if isinstance(error, _Incomplete) else ""
            raise BadRequest(
                f"The body is not valid {coding.decode()}{reason}. Send it as Content-Encoding says."
            ) from None
    return body


class _Incomplete(zlib.error):
    """A stream of the right coding that does not end where the body does."""


def _gunzip(body: bytes, limit: BodyLimit) -> bytes:
    """Decode gzip, of one member or several in a row (RFC 1952, section 2.2)."""
    members, size = [], 0
    while body:
        decoder = zlib.decompressobj(_GZIP_BITS)
        members.append(_finish(decoder, body, limit, size))
        size += len(members[-1])
        body = decoder.unused_data.lstrip(b"\0")  # padding, as gzip itself ignores it
        if body and not body.startswith(_GZIP_START[: len(body)]):
            raise _Incomplete("has other bytes after its end")
    return b"".join(members)


def _inflate(body: bytes, limit: BodyLimit) -> bytes:
    """Decode deflate: as the RFC has it, in zlib's format, or as many clients send it, without."""
    if not body:
        return b""
    failure = zlib.error()
    for bits in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        decoder = zlib.decompressobj(bits)
        try:
            inflated = _finish(decoder, body, limit)
            if not decoder.unused_data:
                return inflated
            raise _Incomplete("has other bytes after its end")
        except zlib.error as error:
            failure = failure if isinstance(failure, _Incomplete) else error
    raise failure


def _finish(decoder: zlib._Decompress, body: bytes, limit: BodyLimit, size: int = 0) -> bytes:
    """Decode a whole stream, after others of `size` bytes."""
    decoded = decoder.decompress(body, limit.max_bytes - size + 1)
    if size + len(decoded) > limit.max_bytes:
        raise UploadTooLarge(limit.reported_bytes)
    if not decoder.eof:
        raise _Incomplete("is truncated")
    return decoded


_DECODERS: dict[bytes, Callable[[bytes, BodyLimit], bytes]] = {
    b"gzip": _gunzip,
    b"x-gzip": _gunzip,
    b"deflate": _inflate,
}
