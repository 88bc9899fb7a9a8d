"""Keys that clients present: read from a setting once, kept as digests, compared in constant time.

Knows nothing of HTTP, and of no key what it was.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable

SHORTEST_KEY = 8

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.IGNORECASE)
_KEY = re.compile(r"[!-~]+")


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of a key, by which it is known here."""
    return hashlib.sha256(key.encode()).digest()


def check_key(key: str) -> None:
    """Check that a key can come in a header.

    Raises:
        ValueError: It can't, or it is too short. The message does not repeat it.
    """
    if len(key) < SHORTEST_KEY:
        raise ValueError(f"Each key should have at least {SHORTEST_KEY} characters")
    if not _KEY.fullmatch(key):
        raise ValueError("A key should have no spaces and only ASCII characters, as it comes in a header")


def parse_keys(text: str) -> tuple[bytes, ...]:
    """Return the digests of keys separated by commas, each plain or as `sha256:` and 64 hexadecimal digits.

    Raises:
        ValueError: There is none, or one that can't be used. The message does not repeat it.
    """
    digests = []
    for part in text.split(","):
        key = part.strip()
        digest = _DIGEST.fullmatch(key)
        if digest is None and key.lower().startswith("sha256:"):
            raise ValueError("A digest should be `sha256:` and 64 hexadecimal digits")
        if digest is None:
            check_key(key)
        digests.append(digest_of(key) if digest is None else bytes.fromhex(digest[1]))
    return tuple(digests)


class KeyRing:
    """The keys that open something.

    A key is hashed before it is compared, and with all that are known: how long that takes says nothing of how much
    of a key was right, nor of which one it was.

    Args:
        digests: Of the keys.
    """

    def __init__(self, digests: Iterable[bytes]) -> None:
        self._digests = tuple(digests)

    def find(self, key: bytes) -> bytes | None:
        """Return the digest of a key that is on the ring; None for any other."""
        digest = hashlib.sha256(key).digest()
        found = None
        for known in self._digests:
            if hmac.compare_digest(known, digest):
                found = known
        return found
