"""API keys: parsing a setting, and comparison."""

from __future__ import annotations

from vit_api.access.api_keys import KeyRing, digest_of, parse_keys

_PLAIN = "a-plain-key"
_HASHED = "a-key-that-is-hashed"


def test_a_key_or_its_digest_may_be_set() -> None:
    """A plain key and its digest are equivalent."""
    digest = digest_of(_PLAIN)
    assert parse_keys(f" {_PLAIN} ,sha256:{digest.hex()},SHA256:{digest.hex().upper()}") == (digest,) * 3


def test_a_ring_finds_only_its_keys() -> None:
    """`find` returns the digest of a known key; a digest itself is not accepted as a key."""
    digests = [digest_of(_PLAIN), digest_of(_HASHED)]
    ring = KeyRing(digests)
    assert [ring.find(key.encode()) for key in (_PLAIN, _HASHED)] == digests
    for wrong in (b"", b"a-plain-ke", b"a-plain-key ", digests[0], digests[0].hex().encode(), b"sha256:\xff"):
        assert ring.find(wrong) is None
    assert KeyRing([]).find(b"") is None
