"""Connections: order, early refusals, time limits, hang-ups and stops, over real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.door_bench import MAX_BYTES, DoorBench, read_all, split_answers, statuses
from tests.support.server import wait_until
from vit_api.web.door.limits import DoorLimits

_QUICK = DoorLimits(
    header_timeout_s=0.5,
    body_timeout_s=0.5,
    keep_alive_s=0.5,
    max_connections=40,
    rate_window_s=2,
    linger_s=2.0,
    linger_idle_s=0.5,
    write_timeout_s=0.5,
    drain_s=0.3,
)
"""So short that a test need not wait; nothing is asserted about how soon they end."""


@pytest.fixture
def bench() -> Iterator[DoorBench]:
    """Run a door with the usual limits."""
    with DoorBench(DoorLimits()) as running:
        yield running


@pytest.fixture
def quick() -> Iterator[DoorBench]:
    """Run a door with short limits."""
    with DoorBench(_QUICK) as running:
        yield running


def _post(body: bytes, path: str = "/hot", *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "host: x", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def _get() -> bytes:
    return b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n"


def _read_one(connection: socket.socket) -> tuple[int, dict[bytes, bytes], bytes]:
    """Read one answer, whose body has a length."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, f"closed after {head!r}"
        head += byte
    (status, headers, _) = next(split_answers(head))
    length = int(headers.get(b"content-length", b"0"))
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return status, headers, body


@pytest.mark.parametrize("first", [b"hello", b"task", b"wait"])
def test_answers_keep_the_order_of_requests(bench: DoorBench, first: bytes) -> None:
    """The first may be answered at once, a moment later, or only when the gate opens."""
    with bench.connect() as connection:
        connection.sendall(_post(first) + _post(b"second") + b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n" + _post(b"last"))
        bench.open_gate()
        answers = [_read_one(connection) for _ in range(4)]
    assert [status for status, _, _ in answers] == [200, 200, 404, 200]
    bodies = [json.loads(body)[-1] for _, _, body in answers]
    assert bodies == [first.hex(), b"second".hex(), "", b"last".hex()]


def test_a_client_that_sends_ahead_without_end_is_not_read(bench: DoorBench) -> None:
    """While its first request is unanswered, only a bounded part of the rest is read; all are answered in the end."""
    count = 3000
    with bench.connect() as connection:
        connection.sendall(_post(b"wait"))
        connection.settimeout(0.5)
        data = _post(b"x" * 1000) * count
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < len(data):
                sent += connection.send(data[sent : sent + 65536])
        (door,) = bench.state.connections
        assert len(door._ahead) < 512 * 1024  # type: ignore[union-attr]
        bench.open_gate()
        assert _read_one(connection)[0] == 200


@pytest.mark.parametrize(
    ("options", "closes"),
    [
        pytest.param({"version": "1.1"}, False, id="1.1"),
        pytest.param({"version": "1.0"}, True, id="1.0"),
    ],
)
@pytest.mark.parametrize("path", ["/hot", "/read"])
def test_versions(bench: DoorBench, path: str, options: dict[str, str], closes: bool) -> None:
    """A connection stays open in HTTP/1.1, and is closed in HTTP/1.0."""
    with bench.connect() as connection:
        connection.sendall(_post(b"hello", path, **options))
        status, headers, _ = _read_one(connection)
        assert (status, headers.get(b"connection")) == (200, b"close" if closes else None)
        if closes:
            assert connection.recv(1) == b""


def test_keep_alive_of_http_1_0(bench: DoorBench) -> None:
    """A client that asks for it, such as `ab -k`, gets the header that confirms it."""
    with bench.connect() as connection:
        for _ in range(2):
            connection.sendall(_post(b"hello", "/hot", "connection: keep-alive", version="1.0"))
            status, headers, _ = _read_one(connection)
            assert (status, headers[b"connection"]) == (200, b"keep-alive")


def test_connection_close(bench: DoorBench) -> None:
    """A client may ask for the end of the connection in any list and in any case."""
    (answer,) = split_answers(bench.exchange(_post(b"x", "/hot", "Connection: TE, Close"), half_close=False))
    assert answer[1][b"connection"] == b"close"


@pytest.mark.parametrize("path", ["/hot", "/read"])
def test_continue_is_sent_when_the_body_is_wanted(bench: DoorBench, path: str) -> None:
    """It is sent before any part of the body arrives."""
    head, body = _post(b"hello", path, "expect: 100-continue")[:-5], b"hello"
    with bench.connect() as connection:
        connection.sendall(head)
        assert _read_one(connection)[0] == 100
        connection.sendall(body)
        assert _read_one(connection)[0] == 200


@pytest.mark.parametrize("query", ["?refuse", "?refuse&slow"])
def test_no_continue_for_a_body_that_is_refused(bench: DoorBench, query: str) -> None:
    """The body may or may not follow, so the connection is closed."""
    head = _post(b"hello", f"/hot{query}", "expect: 100-continue")[:-5]
    (answer,) = split_answers(bench.exchange(head, half_close=False))
    assert (answer[0], answer[1][b"connection"]) == (503, b"close")


@pytest.mark.parametrize("expected", [b"nonsense", b"100-continue, nonsense", b"200-ok"])
def test_other_expectations_are_refused(bench: DoorBench, expected: bytes) -> None:
    """The refusal comes at once, since the client waits for it before it sends the body."""
    head = _post(b"hello", "/hot", f"expect: {expected.decode()}")[:-5]
    (answer,) = split_answers(bench.exchange(head, half_close=False))
    assert (answer[0], answer[1][b"connection"]) == (417, b"close")


@pytest.mark.parametrize("expected", ["100-continue", "nonsense"])
def test_clients_of_http_1_0_can_expect_nothing(bench: DoorBench, expected: str) -> None:
    """RFC 9110, section 10.1.1, says that their expectations are ignored."""
    assert statuses(bench.exchange(_post(b"hello", "/hot", f"expect: {expected}", version="1.0"))) == [200]


def test_no_continue_for_a_body_that_is_there(bench: DoorBench) -> None:
    """Simple clients would take it for the answer."""
    assert statuses(bench.exchange(_post(b"hello", "/hot", "expect: 100-continue"))) == [200]


@pytest.mark.parametrize(
    ("query", "size"),
    [
        ("?refuse", 1000),
        ("?refuse&slow", 1000),
        ("?refuse", 20_000_000),
        ("?refuse&slow", 20_000_000),
        ("", 20_000_000),
    ],
)
def test_a_client_reads_the_refusal_of_a_large_body(bench: DoorBench, query: str, size: int) -> None:
    """Like most clients, it sends everything before it reads; it gets the answer rather than a reset."""
    with bench.connect() as connection:
        connection.sendall(_post(bytes(size), f"/hot{query}"))
        status, headers, _ = _read_one(connection)
        assert status == (503 if query else 413)
        if size == 1000:
            connection.sendall(_post(b"next"))
            assert _read_one(connection)[0] == 200
        else:
            assert headers[b"connection"] == b"close"


def test_a_refusal_does_not_wait_for_the_body(bench: DoorBench) -> None:
    """On every path, one byte of the body is enough; the rest is discarded up to its length."""
    for path, status in (("/hot?refuse", 503), ("/nowhere", 404)):
        with bench.connect() as connection:
            connection.sendall(_post(bytes(1000), path)[:-999])
            assert _read_one(connection)[0] == status
            connection.sendall(bytes(999) + _post(b"next"))
            assert _read_one(connection)[0] == 200


def test_a_chunked_body_that_is_too_long(bench: DoorBench) -> None:
    """It is refused while it arrives."""
    head = b"POST /hot HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%s\r\n" % (50_000, bytes(50_000))
    with bench.connect() as connection:
        connection.sendall(head + chunk * 7)
        assert _read_one(connection)[0] == 413


def test_a_client_that_sends_no_more_gets_its_answer(bench: DoorBench) -> None:
    """After `shutdown(SHUT_WR)` it still reads, and every answer is complete."""
    with bench.connect() as connection:
        connection.sendall(_post(b"wait") + _post(b"wait", "/read") + _post(b"task"))
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        bench.open_gate()
        assert statuses(read_all(connection)) == [200, 200, 200]


@pytest.mark.parametrize("path", ["/hot", "/read"])
def test_a_client_that_sends_no_more_in_its_second_request(bench: DoorBench, path: str) -> None:
    """The first one is answered, the second one abandoned."""
    with bench.connect() as connection:
        connection.sendall(_post(b"wait") + _post(bytes(1000), path)[:-500])
        connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: bool(bench.state.tasks))
        bench.open_gate()
        assert statuses(read_all(connection)) == [200]
    wait_until(lambda: not bench.state.connections and not bench.state.tasks)
    assert bench.ended == ([200, None] if path == "/hot" else [200])


def test_a_client_that_leaves_is_noticed(bench: DoorBench) -> None:
    """Although it looks the same at first, its request is abandoned, and those behind it never begin."""
    connection = bench.connect()
    connection.sendall(_post(b"wait") + _post(b"wait") + _get() + _post(b"wait") + _post(b"wait")[:-4] + b"wa")
    wait_until(lambda: bool(bench.state.tasks))
    connection.close()
    wait_until(lambda: bench.ended == [None] * 4)
    wait_until(lambda: not bench.state.tasks and not bench.state.connections)


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"nonsense\r\n\r\n" + _post(b"x"), id="malformed"),
        pytest.param(_post(b"x")[:20], id="a part of a head"),
        pytest.param(b"\r\n" * 50_000, id="empty lines"),
        pytest.param(
            b"POST /hot HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nnonsense" + _post(b"x"),
            id="a malformed body",
        ),
    ],
)
def test_a_client_that_leaves_with_nonsense_behind_its_request(bench: DoorBench, rest: bytes) -> None:
    """Bytes that are no request are not counted as one, and break nothing."""
    connection = bench.connect()
    connection.sendall(_post(b"wait") + rest)
    wait_until(lambda: bool(bench.state.tasks))
    connection.close()
    wait_until(lambda: not bench.state.tasks and not bench.state.connections)
    assert bench.ended == [None] * (2 if b"chunked" in rest else 1)


def test_a_client_that_leaves_with_thousands_of_requests(bench: DoorBench) -> None:
    """Counting them takes a bounded time."""
    connection = bench.connect()
    connection.sendall(_post(b"wait") + _post(b"") * 2000)
    wait_until(lambda: bool(bench.state.tasks))
    connection.close()
    wait_until(lambda: not bench.state.tasks and not bench.state.connections)
    assert 100 < len(bench.ended) < 300


def test_one_connection_does_not_keep_others_waiting(bench: DoorBench) -> None:
    """However many requests it sends at once, other connections get their turns; all are answered in order."""
    count = 3000
    data = b"".join(_post(b"%d" % number) for number in range(count))
    with bench.connect() as connection, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(connection.sendall, data)
        answers = [_read_one(connection) for _ in range(count)]
        sending.result(30)
    assert [bytes.fromhex(json.loads(body)[-1]) for _, _, body in answers] == [b"%d" % n for n in range(count)]
    assert bench.most_at_once <= 64


@pytest.mark.parametrize("ending", ["close", "half-close"])
def test_many_requests_and_then_the_end(bench: DoorBench, ending: str) -> None:
    """A client that half-closes after them gets all answers; if it asked for the end, the last one says `close`."""
    last = _post(b"last", "/hot", *(["connection: close"] if ending == "close" else []))
    data = _post(b"x") * 500 + last
    assert statuses(bench.exchange(data, half_close=ending == "half-close")) == [200] * 501


def test_a_client_that_leaves_in_its_body(bench: DoorBench) -> None:
    """It is counted as a disconnect."""
    connection = bench.connect()
    connection.sendall(_post(bytes(1000))[:-1])
    wait_until(lambda: bool(bench.state.connections))
    connection.close()
    wait_until(lambda: bench.ended == [None])


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"POST /hot HT", [408], id="a part of the request line"),
        pytest.param(b"POST /hot HTTP/1.1\r\nhost: x\r\n", [408], id="a part of the headers"),
        pytest.param(_post(b"hello")[:-1], [408], id="a part of the body"),
        pytest.param(_post(b"hello", "/read")[:-1], [408], id="a part of another body"),
        pytest.param(_post(b"hello"), [200], id="a request, then nothing"),
        pytest.param(_post(b"hello") + b"P", [200, 408], id="a request, then a part"),
        pytest.param(_post(b"hello", "/hot?refuse")[:-1], [503], id="a part of a refused body"),
        pytest.param(_post(bytes(9_000_000), "/hot")[:-1], [413], id="a part of a body that is too long"),
        pytest.param(b"nonsense\r\n", [400], id="nonsense"),
    ],
)
def test_a_silent_client_is_disconnected(quick: DoorBench, sent: bytes, answered: list[int]) -> None:
    """This holds whatever it was about to send."""
    with quick.connect() as connection:
        connection.sendall(sent)
        assert statuses(read_all(connection)) == answered
    wait_until(lambda: not quick.state.connections)


@pytest.mark.parametrize("head", [b"POST /hot HTTP/1.1\r\nhost: x\r\n", _post(bytes(1_000_000))[:-1_000_000], b""])
def test_a_dripping_client_is_disconnected(quick: DoorBench, head: bytes) -> None:
    """It sends a head, a body or a refused body byte by byte, each one in time."""
    if not head:
        head = _post(bytes(100_000), "/hot?refuse")[:-100_000]
    with quick.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(head)
        deadline = time.monotonic() + 30
        connection.settimeout(0.1)
        while time.monotonic() < deadline:
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                if not connection.recv(65536):
                    break
    wait_until(lambda: not quick.state.connections)


def test_a_steady_upload_may_take_longer_than_any_limit(quick: DoorBench) -> None:
    """It keeps the minimum rate, and no pause is too long."""
    body = bytes(MAX_BYTES)
    with quick.connect() as connection:
        connection.sendall(_post(body)[: -len(body)])
        for start in range(0, len(body), 10_000):
            connection.sendall(body[start : start + 10_000])
            time.sleep(0.1)
        assert _read_one(connection)[0] == 200


def test_a_client_that_never_reads_is_disconnected(quick: DoorBench) -> None:
    """Its answers don't pile up, and it holds nothing up."""
    with quick.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(5)
        with contextlib.suppress(OSError):
            for _ in range(100_000):
                connection.sendall(_post(b"x" * 30_000))
        wait_until(lambda: not quick.state.connections)


def test_the_idlest_connections_make_room(quick: DoorBench) -> None:
    """With more clients than there is room for, those with unfinished heads are closed, the oldest first."""
    with contextlib.ExitStack() as stack:
        for _ in range(120):
            connection = stack.enter_context(quick.connect())
            connection.sendall(b"POST /hot HTTP/1.1\r\n")
        for _ in range(20):
            client = stack.enter_context(quick.connect())
            client.sendall(_post(b"hello"))
            assert _read_one(client)[0] == 200
    assert quick.evicted >= 80


def test_without_room_a_client_is_told_so() -> None:
    """When every connection waits for the server, the next one gets a 503."""
    with DoorBench(_QUICK._replace(max_connections=3)) as bench, contextlib.ExitStack() as stack:
        for count in range(3):
            stack.enter_context(bench.connect()).sendall(_post(b"wait"))
            wait_until(lambda count=count: len(bench.state.tasks) == count + 1)  # type: ignore[misc]
        with bench.connect() as connection:
            assert statuses(read_all(connection)) == [503]
        bench.open_gate()


def test_a_stop_waits_for_requests_only(quick: DoorBench) -> None:
    """Idle connections are closed at once, unfinished heads soon; a request in flight still gets its answer."""
    with quick.connect() as idle, quick.connect() as busy, quick.connect() as dripping:
        idle.sendall(_post(b"hello"))
        assert _read_one(idle)[0] == 200
        dripping.sendall(b"POST")
        busy.sendall(_post(b"wait"))
        wait_until(lambda: len(quick.state.connections) == 3 and bool(quick.state.tasks))
        quick.call(lambda: [connection.shutdown() for connection in list(quick.state.connections)])
        assert idle.recv(1) == b""
        assert statuses(read_all(dripping)) == [408]
        quick.open_gate()
        status, headers, _ = _read_one(busy)
        assert (status, headers[b"connection"]) == (200, b"close")
        assert busy.recv(1) == b""
    wait_until(lambda: not quick.state.connections)


def test_a_draining_server_says_close(bench: DoorBench) -> None:
    """Every path does so, so that clients reconnect elsewhere."""
    bench.draining = True
    for path in ("/hot", "/read"):
        (answer,) = split_answers(bench.exchange(_post(b"hello", path), half_close=False))
        assert answer[1][b"connection"] == b"close"
