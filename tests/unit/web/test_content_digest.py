"""Digests of bodies: RFC 9530."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_api.errors import BadRequest
from vit_api.web.content_digest import check_digests, digests_of, has_digests
from vit_api.web.requests import Request

_BODY = b'{"hello": "world"}'
# Of that body, from the RFC's appendix B.1 on; a line feed is part of neither.
_SHA_256 = b"sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"


def _sha_512(body: bytes) -> bytes:
    return b"sha-512=:" + base64.b64encode(hashlib.sha512(body).digest()) + b":"


def _request(*headers: tuple[bytes, bytes]) -> Request:
    scope = {"method": "POST", "path": "/predict", "query_string": b"", "headers": list(headers)}
    return Request(scope, b"id", arrived_at=0.0, timeout_s=1.0)


async def _check(body: bytes, *headers: tuple[bytes, bytes]) -> None:
    await check_digests(body, digests_of(_request(*headers)))


@pytest.mark.anyio
@pytest.mark.parametrize("name", [b"content-digest", b"repr-digest"])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(_SHA_256, id="SHA-256 of the RFC's example"),
        pytest.param(_sha_512(_BODY), id="SHA-512"),
        pytest.param(_SHA_256 + b" , " + _sha_512(_BODY), id="both"),
        pytest.param(_SHA_256 + b";x=1", id="a parameter"),
        pytest.param(b"md5=:AAAA:, unixsum=30637, sha=x, " + _SHA_256, id="algorithms that are ignored"),
        pytest.param(b"crc32c=:AAAA:", id="only such"),
        pytest.param(b"", id="empty"),
    ],
)
async def test_a_digest_that_matches(name: bytes, value: bytes) -> None:
    """The body is accepted."""
    assert has_digests(_request((name, value)))
    await _check(_BODY, (name, value))


@pytest.mark.anyio
@pytest.mark.parametrize("size", [0, 100, 2**20])
@pytest.mark.parametrize(("name", "shown"), [(b"content-digest", "Content-Digest"), (b"repr-digest", "Repr-Digest")])
async def test_a_digest_that_differs(name: bytes, shown: str, size: int) -> None:
    """The error has the actual digest, for short bodies and for those that are hashed in a thread."""
    body = bytes(size)
    found = base64.b64encode(hashlib.sha512(body).digest()).decode()
    with pytest.raises(BadRequest) as raised:
        await _check(body, (name, _sha_512(body + b"x")))
    assert raised.value.message == (
        f"The body does not match {shown}: its {size} bytes have sha-512=:{found}:. Send it again."
    )


@pytest.mark.anyio
async def test_each_digest_counts() -> None:
    """This includes the digests of a repeated header."""
    with pytest.raises(BadRequest, match="sha-512"):
        await _check(_BODY, (b"content-digest", _SHA_256), (b"content-digest", _sha_512(b"x")))
    with pytest.raises(BadRequest, match="Repr-Digest"):
        await _check(_BODY, (b"content-digest", _SHA_256), (b"repr-digest", _sha_512(b"x")))


@pytest.mark.parametrize(
    "value",
    [b"sha-256", b"sha-256=", b"sha-256=::", b"sha-256=:AAAA:", b"sha-256=X48E9q", b"sha-512=:A:", _SHA_256[:-1]],
)
def test_a_malformed_digest(value: bytes) -> None:
    """The error shows the expected form."""
    with pytest.raises(BadRequest, match="Content-Digest is malformed: send sha-"):
        digests_of(_request((b"content-digest", value)))


@given(value=st.binary(max_size=60))
def test_no_header_breaks_the_parser(value: bytes) -> None:
    """Any value is either parsed or refused with a client error."""
    for header in (value, b"sha-256=" + value, b"sha-512=:" + value + b":"):
        try:
            digests_of(_request((b"content-digest", header)))
        except BadRequest:
            continue
