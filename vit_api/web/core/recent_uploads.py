"""The uploads that were found in the cache last, with their keys: comparing a repeated one is cheaper than hashing it.

Hashing a photo takes far longer than comparing it, and longer than all the rest of its cache hit. Knows nothing of what
is cached: a key that is found here may have expired there.
"""

from __future__ import annotations

_MIN_BYTES = 2048
"""Shorter uploads are hashed about as fast as they are found here."""
_SAMPLE_BYTES = 32

MAX_BYTES = 8 * 2**20
"""Maximum size of all kept uploads of one HTTP process and model together."""


class RecentUploads:
    """Find the keys of recent uploads, in two generations: one that is used moves to the younger, the older is dropped.

    Args:
        max_bytes: Maximum size of all uploads together.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_young_bytes = max_bytes // 2
        self._young: dict[tuple[int, bytes], tuple[bytes, bytes]] = {}
        self._old: dict[tuple[int, bytes], tuple[bytes, bytes]] = {}
        self._young_bytes = 0

    @property
    def size(self) -> int:
        """The size of all uploads together, in bytes."""
        return sum(len(upload) for kept in (self._young, self._old) for upload, _ in kept.values())

    def find(self, upload: bytes) -> bytes | None:
        """Return the key of an upload with the same bytes; None if there is none."""
        if len(upload) < _MIN_BYTES:
            return None
        sample = _sample_of(upload)
        known = self._young.get(sample)
        if known is None:
            known = self._old.get(sample)
            if known is None or known[0] != upload:
                return None
            self.add(*known)
            return known[1]
        return known[1] if known[0] == upload else None

    def add(self, upload: bytes, key: bytes) -> None:
        """Keep an upload and its key, in place of another of the same length that looks alike."""
        if not _MIN_BYTES <= len(upload) <= self._max_young_bytes:
            return
        sample = _sample_of(upload)
        if sample not in self._young:
            if self._young_bytes + len(upload) > self._max_young_bytes:
                self.age()
            self._young_bytes += len(upload)
        self._young[sample] = (upload, key)

    def age(self) -> None:
        """Drop those that were not used since the last call."""
        self._old, self._young, self._young_bytes = self._young, {}, 0


def _sample_of(upload: bytes) -> tuple[int, bytes]:
    """Return what differs between nearly all files: the length, and bytes of the middle."""
    middle = len(upload) // 2
    return len(upload), upload[middle : middle + _SAMPLE_BYTES]
