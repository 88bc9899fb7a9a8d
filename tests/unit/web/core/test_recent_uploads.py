"""Recent uploads: found by their bytes alone, and forgotten in time."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from vit_api.web.core.recent_uploads import RecentUploads

_KIB = 1024


def _upload(seed: int, size: int = 4 * _KIB) -> bytes:
    return random.Random(seed).randbytes(size)


def test_an_upload_is_found_by_its_bytes() -> None:
    """Another object with the same bytes is the same upload; one that differs in any byte is not."""
    recent = RecentUploads()
    recent.add(_upload(1), b"key 1")
    recent.add(_upload(2), b"key 2")
    assert recent.find(bytes(bytearray(_upload(1)))) == b"key 1"
    assert recent.find(_upload(2)) == b"key 2"
    assert recent.find(_upload(3)) is None
    for position in (0, 2 * _KIB, 4 * _KIB - 1):
        changed = bytearray(_upload(1))
        changed[position] ^= 1
        assert recent.find(bytes(changed)) is None


def test_files_that_look_alike_do_not_share_a_key() -> None:
    """Files of one length with the same middle are told apart; the last one that was added is known."""
    recent = RecentUploads()
    one, other = b"a" + bytes(4 * _KIB), b"b" + bytes(4 * _KIB)
    recent.add(one, b"one")
    assert recent.find(other) is None
    recent.add(other, b"other")
    assert recent.find(other) == b"other"
    assert recent.find(one) is None


def test_uploads_that_are_not_used_are_forgotten() -> None:
    """One that was used since the last call of `age` stays, one that was not goes with the next."""
    recent = RecentUploads()
    recent.add(_upload(1), b"used")
    recent.add(_upload(2), b"unused")
    for _ in range(5):
        recent.age()
        assert recent.find(_upload(1)) == b"used"
    assert recent.find(_upload(2)) is None
    recent.age()
    recent.age()
    assert recent.find(_upload(1)) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([100, 3 * _KIB, 9 * _KIB, 40 * _KIB])), max_size=60))
def test_memory_is_bounded_and_no_key_is_wrong(steps: list[tuple[int, int]]) -> None:
    """Whatever is added and found, at most the given size is kept, and a key is that of the same upload."""
    recent = RecentUploads(max_bytes=64 * _KIB)
    for seed, size in steps:
        upload, key = _upload(seed, size), b"%d, %d" % (seed, size)
        assert recent.find(upload) in (None, key)
        recent.add(upload, key)
        assert recent.size <= 64 * _KIB
        assert recent.find(upload) == (None if size == 100 or size > 32 * _KIB else key)
