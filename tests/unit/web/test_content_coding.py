"""Compressed bodies."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_api.errors import BadRequest, UnsupportedEncoding, UploadTooLarge
from vit_api.web.content_coding import codings_of, decode
from vit_api.web.requests import BodyLimit

_LIMIT = BodyLimit(2**20, 10**6)
_PLAIN = b"an image" * 100


def _raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("header", "body"),
    [
        pytest.param(b"", _PLAIN, id="none"),
        pytest.param(b"identity", _PLAIN, id="identity"),
        pytest.param(b"gzip", gzip.compress(_PLAIN), id="gzip"),
        pytest.param(b"X-GZIP", gzip.compress(_PLAIN), id="its old name"),
        pytest.param(b"gzip", gzip.compress(_PLAIN[:9]) + gzip.compress(_PLAIN[9:]), id="two members"),
        pytest.param(b"gzip", gzip.compress(_PLAIN) + bytes(512), id="padding"),
        pytest.param(b"deflate", zlib.compress(_PLAIN), id="deflate"),
        pytest.param(b"deflate", _raw_deflate(_PLAIN), id="deflate without zlib's header"),
        pytest.param(b"gzip, gzip", gzip.compress(gzip.compress(_PLAIN)), id="the same coding twice"),
        pytest.param(b"deflate, gzip", gzip.compress(zlib.compress(_PLAIN)), id="two codings"),
        pytest.param(b" gzip ,, identity", gzip.compress(_PLAIN), id="spaces and empty items"),
    ],
)
def test_what_is_compressed_is_decoded(header: bytes, body: bytes) -> None:
    """Several codings are decoded in the reverse of their order in the header."""
    assert decode(body, codings_of(header), _LIMIT) == _PLAIN


@pytest.mark.parametrize("header", [b"br", b"zstd", b"gzip, br", b"*", b"gzip;q=1", b"\xff", b"gzip," * 9])
def test_other_codings_are_refused(header: bytes) -> None:
    """The response says which are supported."""
    with pytest.raises(UnsupportedEncoding, match="Content-Encoding") as raised:
        codings_of(header)
    assert raised.value.headers() == {"accept-encoding": "gzip, deflate"}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(_PLAIN, id="not compressed"),
        pytest.param(gzip.compress(_PLAIN)[:-9], id="truncated"),
        pytest.param(gzip.compress(_PLAIN)[:-8] + bytes(8), id="wrong checksum"),
        pytest.param(gzip.compress(_PLAIN) + b"rest", id="something behind"),
    ],
)
@pytest.mark.parametrize("header", [b"gzip", b"deflate"])
def test_a_body_that_is_not_of_its_coding(header: bytes, body: bytes) -> None:
    """The error names the coding."""
    with pytest.raises(BadRequest, match=header.decode()):
        decode(body, codings_of(header), _LIMIT)


@pytest.mark.parametrize(
    ("header", "body", "reason"),
    [
        pytest.param(b"gzip", gzip.compress(_PLAIN)[:-9], "is truncated", id="gzip cut off"),
        pytest.param(b"gzip", gzip.compress(_PLAIN)[:5], "is truncated", id="gzip's header cut off"),
        pytest.param(b"gzip", gzip.compress(_PLAIN) + gzip.compress(_PLAIN)[:9], "is truncated", id="second member"),
        pytest.param(b"gzip", gzip.compress(_PLAIN) + b"rest", "has other bytes after its end", id="after gzip"),
        pytest.param(b"deflate", zlib.compress(_PLAIN)[:-9], "is truncated", id="zlib cut off"),
        pytest.param(b"deflate", _raw_deflate(_PLAIN)[:-9], "is truncated", id="deflate cut off"),
        pytest.param(b"deflate", zlib.compress(_PLAIN) + b"rest", "has other bytes after its end", id="after zlib"),
        pytest.param(b"deflate", _raw_deflate(_PLAIN) + b"rest", "has other bytes after its end", id="after deflate"),
    ],
)
def test_the_error_says_what_is_wrong_with_a_coding(header: bytes, body: bytes, reason: str) -> None:
    """A body that was cut off differs from one that was never compressed."""
    with pytest.raises(BadRequest, match=f"not valid {header.decode()}: it {reason}"):
        decode(body, codings_of(header), _LIMIT)


@pytest.mark.parametrize("header", [b"gzip", b"deflate", b"gzip, gzip"])
def test_an_empty_body_is_empty(header: bytes) -> None:
    """The error is that of an empty upload."""
    assert decode(b"", codings_of(header), _LIMIT) == b""


@pytest.mark.parametrize(
    ("header", "make_bomb"),
    [
        pytest.param(b"gzip", lambda: gzip.compress(bytes(50 * 2**20)), id="gzip"),
        pytest.param(b"deflate", lambda: zlib.compress(bytes(50 * 2**20)), id="deflate"),
        pytest.param(b"gzip, gzip", lambda: gzip.compress(gzip.compress(bytes(50 * 2**20))), id="twice"),
        pytest.param(b"gzip", lambda: gzip.compress(bytes(2**16)) * 1000, id="many members"),
    ],
)
def test_a_bomb_is_too_large(header: bytes, make_bomb: Callable[[], bytes]) -> None:
    """No more than the limit is ever decoded."""
    bomb = make_bomb()
    tracemalloc.start()
    try:
        with pytest.raises(UploadTooLarge) as raised:
            decode(bomb, codings_of(header), _LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert raised.value.message == UploadTooLarge(_LIMIT.reported_bytes).message
    assert peak < 3 * _LIMIT.max_bytes


def test_the_limit_itself_is_not_too_large() -> None:
    """A body of exactly the limit is accepted; one byte more is refused."""
    assert len(decode(gzip.compress(bytes(_LIMIT.max_bytes)), [b"gzip"], _LIMIT)) == _LIMIT.max_bytes
    with pytest.raises(UploadTooLarge):
        decode(gzip.compress(bytes(_LIMIT.max_bytes + 1)), [b"gzip"], _LIMIT)


@given(body=st.binary(max_size=300), coding=st.sampled_from([b"gzip", b"deflate"]))
def test_no_body_breaks_the_decoder(body: bytes, coding: bytes) -> None:
    """Any bytes are either decoded or refused with a client error."""
    with contextlib.suppress(BadRequest, UploadTooLarge):
        decode(body, [coding], _LIMIT)
