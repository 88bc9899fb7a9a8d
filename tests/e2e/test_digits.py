"""The embedded model on a running server."""

from __future__ import annotations

from tests.support.clients import post_all
from tests.support.server import ROOT, RunningServer

_MIN_ACCURACY = 0.985
_MAX_BYTES = 2 * 2**20


def test_held_out_digits(digits_server: RunningServer, held_out: list[tuple[bytes, str]]) -> None:
    """The running server classifies at least 98.5% of the held-out scans correctly."""
    clients = [[upload for upload, _ in held_out[start::8]] for start in range(8)]
    labels = [[label for _, label in held_out[start::8]] for start in range(8)]
    replies = post_all(digits_server.port, clients)
    pairs = [pair for mine, theirs in zip(replies, labels, strict=True) for pair in zip(mine, theirs, strict=True)]
    right = sum(reply.body["predictions"][0]["label"] == label for reply, label in pairs)
    assert len(pairs) == 360
    assert right / len(pairs) >= _MIN_ACCURACY


def test_the_checkpoint_is_small() -> None:
    """The checkpoint is at most 2 MB, since it is part of the repository."""
    folder = ROOT / "vit_api" / "checkpoints" / "digits"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= _MAX_BYTES
