"""API keys: parsed from settings, kept as digests, compared in constant time.

Knows nothing of HTTP, and never keeps a key itself.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable

MIN_KEY_LENGTH = 8

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.IGNORECASE)
_KEY = re.compile(r"[!-~]+")


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of a key, which identifies it."""
    return hashlib.sha256(key.encode()).digest()


def check_key(key: str) -> None:
    """Check that a key is long enough and can be sent in a header.

    Raises:
        ValueError: It is too short, or has characters that a header can't have. The message does not repeat it.
    """
    if len(key) < MIN_KEY_LENGTH:
        raise ValueError(f"Each key must have at least {MIN_KEY_LENGTH} characters")
    if not _KEY.fullmatch(key):
        raise ValueError("A key must have no spaces and only ASCII characters, since it is sent in a header")


def parse_keys(text: str) -> tuple[bytes, ...]:
    """Return the digests of comma-separated keys, each plain or as `sha256:` and 64 hexadecimal digits.

    Raises:
        ValueError: There is no key, or an invalid one. The message does not repeat it.
    """
    digests = []
    for part in text.split(","):
        key = part.strip()
        digest = _DIGEST.fullmatch(key)
        if digest is None and key.lower().startswith("sha256:"):
            raise ValueError("A digest must be `sha256:` followed by 64 hexadecimal digits")
        if digest is None:
            check_key(key)
        digests.append(digest_of(key) if digest is None else bytes.fromhex(digest[1]))
    return tuple(digests)


class KeyRing:
    """The keys that grant access to something.

    A presented key is hashed and then compared with every known digest, so the time taken does not reveal how much of
    a key was right, nor which key matched.

    Args:
        digests: The keys' digests.
    """

    def __init__(self, digests: Iterable[bytes]) -> None:
        self._digests = tuple(digests)

    def find(self, key: bytes) -> bytes | None:
        """Return the digest of a key that is on the ring, or None."""
        digest = hashlib.sha256(key).digest()
        found = None
        for known in self._digests:
            if hmac.compare_digest(known, digest):
                found = known
        return found
