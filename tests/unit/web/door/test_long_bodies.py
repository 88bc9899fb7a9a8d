"""Long bodies, which are read straight into their place, over real sockets."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator

import pytest

from tests.support.door_bench import FULL_BYTES, MAX_BYTES, DoorBench, read_all, split_answers, statuses
from tests.support.server import wait_until
from vit_api.web.door.limits import DoorLimits
from vit_api.web.door.long_bodies import LongBodyReader
from vit_api.web.door.protocol import Door

_FIRST = 65_536
"""So much arrives before the next three times as much are read straight into their place."""
_BODY = random.Random(0).randbytes(MAX_BYTES)


@pytest.fixture
def bench() -> Iterator[DoorBench]:
    """Run a door with the usual limits."""
    with DoorBench(DoorLimits()) as running:
        yield running


def _head(path: str = "/hot", length: int = MAX_BYTES) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode()


def _reader(bench: DoorBench) -> LongBodyReader | None:
    """Return what reads the body of the only connection."""
    (door,) = bench.state.connections
    assert isinstance(door, Door)
    return door._long_body


def _begin(bench: DoorBench) -> socket.socket:
    """Return a connection whose long body is being read straight into its place."""
    connection = bench.connect()
    connection.sendall(_head() + _BODY[:_FIRST])
    wait_until(lambda: len(bench.state.connections) == 1 and _reader(bench) is not None)
    return connection


def _bodies(received: bytes) -> list[bytes]:
    """Return the bodies that the application says it has got."""
    return [bytes.fromhex(json.loads(body)[-1]) for _, _, body in split_answers(received)]


@pytest.mark.parametrize("size", [1_000, 4_095, 65_536, 100_000, MAX_BYTES])
def test_the_body_arrives_as_it_was_sent(bench: DoorBench, size: int) -> None:
    """In pieces of any size, with requests behind it in the same packet, twice on one connection."""
    following = _head(length=5) + b"hello"
    with _begin(bench) as connection:
        rest = _BODY[_FIRST:] + following + _head() + _BODY + following
        for piece in _pieces(rest, size):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        assert _bodies(read_all(connection)) == [_BODY, b"hello", _BODY, b"hello"]
    assert bench.ended == [200] * 4


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def test_a_body_of_which_little_has_arrived_has_no_memory_of_its_length(bench: DoorBench) -> None:
    """Announcing much costs the server nothing."""
    with bench.connect() as connection:
        connection.sendall(_head() + _BODY[:1000])
        wait_until(lambda: [door.received_bytes for door in bench.state.connections] == [1000])  # type: ignore[union-attr]
        assert _reader(bench) is None


def test_a_client_that_leaves_in_a_long_body(bench: DoorBench) -> None:
    """Its request is abandoned."""
    _begin(bench).close()
    wait_until(lambda: not bench.state.connections)
    assert bench.ended == [None]


def test_a_client_that_sends_no_more_in_a_long_body(bench: DoorBench) -> None:
    """The connection is closed."""
    with _begin(bench) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
    assert bench.ended == [None]


@pytest.mark.parametrize("first", [_FIRST, FULL_BYTES // 4 + 1])
def test_a_long_body_for_which_there_is_no_memory(bench: DoorBench, first: int) -> None:
    """The client reads the refusal; the rest is discarded up to its length, and the next request is answered.

    It is refused once its memory would be reserved: before the first piece, or before a later one.
    """
    with bench.connect() as connection:
        connection.sendall(_head("/hot?full") + _BODY[:first])
        if first == _FIRST:
            wait_until(lambda: bool(bench.state.connections) and _reader(bench) is not None)
            connection.sendall(_BODY[first : 4 * _FIRST])
        wait_until(lambda: bench.ended == [503])
        connection.sendall(_BODY[4 * _FIRST if first == _FIRST else first :] + _head(length=4) + b"next")
        connection.shutdown(socket.SHUT_WR)
        assert statuses(read_all(connection)) == [503, 200]


def test_a_long_body_that_stops() -> None:
    """It gets a 408, as others do."""
    with DoorBench(DoorLimits(body_timeout_s=0.5, linger_idle_s=0.5)) as quick, _begin(quick) as connection:
        connection.sendall(_BODY[_FIRST:-1])
        assert statuses(read_all(connection)) == [408]


def test_a_stop_lets_a_long_body_arrive(bench: DoorBench) -> None:
    """Its answer is the last one of the connection."""
    with _begin(bench) as connection:
        bench.call(lambda: [door.shutdown() for door in bench.state.connections])
        connection.sendall(_BODY[_FIRST:])
        assert _bodies(read_all(connection)) == [_BODY]
