"""Checks `Content-Digest` and `Repr-Digest` of RFC 9530, if a client sends them. Knows nothing of what is in a body."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vit_api.errors import BadRequest
from vit_api.web.requests import Request

_FIELDS = (b"content-digest", b"repr-digest")
"""A request's content is its whole representation, content coding included, so both are of the same bytes."""
_ALGORITHMS: dict[bytes, Callable[..., hashlib._Hash]] = {b"sha-256": hashlib.sha256, b"sha-512": hashlib.sha512}
"""Those that the RFC calls active; others are ignored, as it demands."""
_SIZES = {algorithm: new().digest_size for algorithm, new in _ALGORITHMS.items()}
_BYTES = re.compile(rb":([A-Za-z0-9+/]*={0,2}):")
"""A byte sequence of RFC 9651, section 3.3.5."""
_LONG_BODY_BYTES = 256 * 1024
"""Longer bodies are hashed in a thread, which the GIL does not hold up."""


class Digest(NamedTuple):
    """What a body must hash to.

    Attributes:
        field: The header's name, for the error.
        algorithm: The algorithm's name.
        expected: The digest.
    """

    field: str
    algorithm: bytes
    expected: bytes


def has_digests(request: Request) -> bool:
    """Return whether the request has a header of digests."""
    return b"content-digest" in request.headers or b"repr-digest" in request.headers


def digests_of(request: Request) -> list[Digest]:
    """Return the digests in a request's headers, of the algorithms that are supported.

    Raises:
        BadRequest: One is malformed.
    """
    found = []
    for name in _FIELDS:
        field = name.decode().title()
        for member in request.joined(name).split(b","):
            key, _, value = member.strip().partition(b"=")
            if key in _ALGORITHMS:
                found.append(Digest(field, key, _parse(field, key, value)))
    return found


def _parse(field: str, algorithm: bytes, value: bytes) -> bytes:
    match = _BYTES.fullmatch(value.partition(b";")[0].strip())
    try:
        digest = base64.b64decode(match[1], validate=True) if match else b""
    except ValueError:
        digest = b""
    if len(digest) != _SIZES[algorithm]:
        name = algorithm.decode()
        raise BadRequest(
            f"{field} is malformed: send {name}=:<base64>:, with the {_SIZES[algorithm]} bytes of the digest in base64."
        )
    return digest


async def check_digests(body: bytes, digests: Sequence[Digest]) -> None:
    """Compare a body, as it was sent, with its digests.

    Raises:
        BadRequest: One differs; the error has the digest that was found.
    """
    if len(body) > _LONG_BODY_BYTES:
        await asyncio.get_running_loop().run_in_executor(None, _compare, body, digests)
    else:
        _compare(body, digests)


def _compare(body: bytes, digests: Sequence[Digest]) -> None:
    for digest in digests:
        found = _ALGORITHMS[digest.algorithm](body).digest()
        if found != digest.expected:
            shown = base64.b64encode(found).decode()
            raise BadRequest(
                f"The body does not match {digest.field}: its {len(body)} bytes have"
                f" {digest.algorithm.decode()}=:{shown}:. Send it again."
            )
