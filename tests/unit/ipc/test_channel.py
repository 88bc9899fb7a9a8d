"""Messages and descriptors between processes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vit_api.ipc import descriptors
from vit_api.ipc.channel import Channel, ChannelClosed
from vit_api.ipc.records import RecordPipe
from vit_api.ipc.shared_memory import SharedArrays


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    one, other = Channel.pair()
    yield one, other
    one.close()
    other.close()


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_message_of_any_length_arrives(pair: tuple[Channel, Channel]) -> None:
    """Far longer than a packet of the socket."""
    one, other = pair
    message = {"labels": ["x" * 100] * 50_000}
    one.send(message)
    assert other.receive() == (message, [])
    assert other.receive() is None


@pytest.mark.parametrize("count", [1, 199, 200, 201, 600])
def test_descriptors_arrive_in_their_order(count: int) -> None:
    """More of them than one packet takes, and none is left open at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = _open_descriptors()
    one, other = Channel.pair()
    files = [os.memfd_create(str(number)) for number in range(count)]
    one.send("files", files)
    received = other.receive()
    assert received is not None
    message, arrived = received
    assert message == "files"
    names = [str(Path(f"/proc/self/fd/{descriptor}").readlink()) for descriptor in arrived]
    assert names == [f"/memfd:{number} (deleted)" for number in range(count)]
    for descriptor in (*files, *arrived):
        os.close(descriptor)
    one.close()
    other.close()
    assert _open_descriptors() == before
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_closed_end_is_noticed(pair: tuple[Channel, Channel]) -> None:
    """By the one that reads, and by the one that writes."""
    one, other = pair
    one.close()
    with pytest.raises(ChannelClosed):
        other.receive()
    with pytest.raises(ChannelClosed):
        other.send("nobody")


def test_an_end_that_never_reads_does_not_block_the_other(pair: tuple[Channel, Channel]) -> None:
    """Its channel counts as closed."""
    one, _ = pair
    with pytest.raises(ChannelClosed):
        for number in range(100_000):
            one.send(number)


def test_what_is_made_in_the_same_order_shares_its_memory() -> None:
    """Arrays and pipes of another process, by their descriptors."""

    def make() -> tuple[RecordPipe, SharedArrays]:
        return RecordPipe(8, 4), SharedArrays({"count": (np.int64, (3,))})

    made: list[int] = []
    with descriptors.recording(made):
        pipe, arrays = make()
    with descriptors.adopting(made):
        same_pipe, same_arrays = make()
    arrays["count"][1] = 7
    pipe.write([b"12345678"])
    assert same_arrays["count"].tolist() == [0, 7, 0]
    assert same_pipe.read(4) == b"12345678"


@pytest.mark.parametrize("difference", [pytest.param(-1, id="fewer"), pytest.param(1, id="more")])
def test_another_number_of_descriptors_is_an_error(difference: int) -> None:
    """Both processes must make the same."""
    made: list[int] = []
    with descriptors.recording(made):
        kept = [SharedArrays({"count": (np.int64, (3,))}) for _ in range(2 + difference)]
    with pytest.raises(ValueError, match="Another process made"), descriptors.adopting(made):
        kept += [SharedArrays({"count": (np.int64, (3,))}) for _ in range(2)]
