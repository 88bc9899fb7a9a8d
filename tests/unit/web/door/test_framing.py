"""Framing compared with h11's, with requests delivered in pieces of every size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import h11
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.support.door_bench import DoorBench, read_all, split_answers
from vit_api.errors import ViTError
from vit_api.web.door.chunks import ChunkedBody
from vit_api.web.door.head_cache import MAX_HEADS, HeadCache
from vit_api.web.door.heads import MAX_HEAD_BYTES, Head, check_incomplete, parse_head
from vit_api.web.door.limits import DoorLimits

Parsed = tuple[str, bytes, list[tuple[bytes, bytes]], bytes]
"""Method, target, headers and body."""

_METHODS = st.sampled_from([b"POST", b"GET", b"PUT", b"post", b"X-Y", b"P(T", b"", b"POST "])
_TARGETS = st.sampled_from(
    [b"/hot", b"/hot?a=b", b"/%20", b"*", b"hot", b"http://x/hot", b"/a b", b"/\xe9", b"/a\x00", b""]
)
_VERSIONS = st.sampled_from(
    [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.2", b"http/1.1", b"HTTP/1.1 ", b"HTTP/11", b""]
)
_LINE_ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\n\r"])
_NAMES = st.sampled_from(
    [
        b"Host",
        b"Content-Length",
        b"Transfer-Encoding",
        b"X-A",
        b"X A",
        b"X-A ",
        b" X-A",
        b"\tX-A",
        b"X\x00",
        b"",
        b"\xe9",
    ]
)
_VALUES = st.sampled_from(
    [
        b"x",
        b"5",
        b"05",
        b"+5",
        b"-5",
        b"5, 5",
        b"0x5",
        b"5 5",
        b"9" * 30,
        b"0" * 5000 + b"5",
        b"",
        b" ",
        b"chunked",
        b"Chunked",
        b"gzip, chunked",
        b"chunked, chunked",
        b"xchunked",
        b"a\x00b",
        b"a\rb",
        b"a\x0bb",
        b"\xff",
        b"a\tb",
    ]
)
_BODIES = st.sampled_from(
    [
        b"",
        b"hello",
        b"hel",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\n",
        b"05\r\nhello\r\n00\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
        b"ffffffffffffffffffff\r\nx",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"g\r\n",
    ]
)
_GOOD_FIELDS = [(b"Host", b"x")]


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    """Return a request that may be slightly malformed."""
    end = draw(_LINE_ENDS)
    fields = draw(st.lists(st.tuples(_NAMES, _VALUES, _LINE_ENDS), max_size=3))
    lines = [draw(st.sampled_from([b"POST", b"GET"]) | _METHODS), b" ", draw(st.just(b"/hot") | _TARGETS), b" "]
    lines += [draw(st.just(b"HTTP/1.1") | _VERSIONS), end]
    for name, value in draw(st.just(_GOOD_FIELDS) | st.just([])):
        lines += [name, b": ", value, b"\r\n"]
    framing = draw(st.sampled_from([b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"]))
    lines.append(framing)
    for name, value, line_end in fields:
        lines += [name, draw(st.sampled_from([b":", b": ", b" :", b""])), value, line_end]
    request = b"".join([*lines, draw(st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r"])), draw(_BODIES)])
    if draw(st.booleans()) and request:
        position = draw(st.integers(0, len(request) - 1))
        byte = draw(st.sampled_from([b"", b"\r", b"\n", b" ", b"\x00", b":", b",", b"0", b"\t", b"\x80"]))
        request = request[:position] + byte + request[position + draw(st.integers(0, 1)) :]
    return request


def _of_h11(data: bytes) -> Parsed | None:
    """Return the first request as h11 reads it, or None if it is refused or incomplete."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    body, request = b"", None
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                return request.method.decode(), request.target, list(request.headers), body
            else:
                return None
    except h11.RemoteProtocolError:
        return None


def _of_ours(data: bytes) -> Parsed | None:
    """Return the first request as the door reads it."""
    try:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            check_incomplete(data, 0, 0)
            return None
        head = parse_head(data, 0, end + 2)
        body = _body_of(head, data, end + 4)
    except ViTError:
        return None
    target = head.raw_path + (b"?" + head.query if head.query else b"")
    return None if body is None else (head.method, target, head.headers, body)


def _body_of(head: Head, data: bytes, start: int) -> bytes | None:
    if not head.is_chunked:
        body = data[start : start + head.length]
        return body if len(body) == head.length else None
    chunks = ChunkedBody(start, len(head.headers))
    chunks.feed(data, start)
    return bytes(chunks.content) if chunks.is_complete else None


@given(_requests())
@settings(max_examples=1000, deadline=None)
def test_what_h11_refuses_is_refused(request_bytes: bytes) -> None:
    """A request that is accepted is read as h11 reads it."""
    ours = _of_ours(request_bytes)
    if ours is not None:
        theirs = _of_h11(request_bytes)
        assert theirs is not None
        method, target, headers, body = theirs
        if not target.startswith(b"/"):
            target = ours[1]  # of the absolute form we keep the path only
        assert ours == (method, target, headers, body)


@pytest.fixture(scope="module")
def bench() -> Iterator[DoorBench]:
    """Run a door."""
    with DoorBench(DoorLimits()) as running:
        yield running


_REFUSED = {400, 405, 414, 417, 431, 501, 505}


def _answers(bench: DoorBench, pieces: list[bytes]) -> list[tuple[int, object]]:
    """Return the answers. Which of several faults is reported may depend on the pieces."""
    answers = split_answers(bench.exchange(*pieces))
    return [
        (400, None) if status in _REFUSED else (status, json.loads(body) if status == 200 else None)
        for status, _, body in answers
    ]


@given(_requests(), st.integers(1, 40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_change_nothing(bench: DoorBench, request_bytes: bytes, size: int) -> None:
    """A request gets the same answers in one packet as in many, and so does the one behind it."""
    # A GET is answered before its body comes, so a body that is malformed is noticed before or after that.
    assume(not (request_bytes.startswith(b"GET") and b"hunked" in request_bytes))
    data = request_bytes + b"POST /hot HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nnext"
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert _answers(bench, [data]) == _answers(bench, pieces)


_TWO = (
    b"POST /hot HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMA\r\n"
    b"Content-Length: 5\r\n\r\nhello",
    b"POST /hot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: x-a\r\n\r\n"
    b'2\r\nhe\r\n3;name="v"\r\nllo\r\n0\r\nX-A: b\r\n\r\n',
)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 10_000])
def test_pipelined_requests_are_answered_in_order(bench: DoorBench, size: int) -> None:
    """Among them are an upgrade that is ignored, a chunked body and a path of FastAPI's."""
    data = _TWO[0] + _TWO[1] + b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n" + _TWO[0]
    answers = list(split_answers(bench.exchange(*[data[at : at + size] for at in range(0, len(data), size)])))
    assert [status for status, _, _ in answers] == [200, 200, 404, 200]
    assert [json.loads(body)[-1] for _, _, body in answers] == [b"hello".hex()] * 2 + ["", b"hello".hex()]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, id="HTTP/2"),
        pytest.param(b"GET / HTTP/1.1\n", 400, id="bare LF"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, id="two Hosts"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400, id="folded"),
        pytest.param(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, id="space before the colon"),
        pytest.param(b"GET /" + b"a" * MAX_HEAD_BYTES, 414, id="endless target"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200, 431, id="many headers"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"y" * MAX_HEAD_BYTES, 431, id="endless header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n", 431, id="long header"),
        pytest.param(b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 405, id="CONNECT"),
        pytest.param(b"POST /hot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, id="gzip"),
        pytest.param(
            b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="both lengths",
        ),
        pytest.param(b"POST /hot HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="chunked 1.0"),
        pytest.param(
            b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"0" * 5000 + b"5\r\n\r\nhello",
            400,
            id="5,000 digits",
        ),
        pytest.param(
            b"POST /hot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 200,
            431,
            id="many trailers",
        ),
        pytest.param(
            b"POST /hot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"y" * 70_000,
            431,
            id="endless extension",
        ),
        pytest.param(
            b"POST /hot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000,
            400,
            id="tiny chunks",
        ),
        pytest.param(
            b"POST /hot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloPOST /", 400, id="long chunk"
        ),
        pytest.param(b"\r\n" * 9, 400, id="blank lines"),
        *(
            pytest.param(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n", 400, id=f"Host {host!r}")
            for host in (b"a b", b"x/y", b"u@x", b"a\tb", b"<x>", b"\xe9", b'"x"', b"a, b")
        ),
        *(
            pytest.param(
                b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\nhello",
                400,
                id=f"length {length!r}",
            )
            for length in (
                b"+5",
                b"5,5",
                b"5, 6",
                b"",
                b"-5",
                b"0x5",
                b"5 5",
                b"5.",
                b"1e1",
                b"\xb2",
                b"5_0",
                b"9" * 19,
            )
        ),
        *(
            pytest.param(
                b"POST /hot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding" + coding + b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                status,
                id=f"coding {coding!r}",
            )
            for coding, status in (
                (b": chunked,identity", 501),
                (b": identity, chunked", 501),
                (b": identity", 501),
                (b": chunked, chunked", 501),
                (b": ", 501),
                (b": ,chunked", 501),
                (b": chunked;q=1", 501),
                (b': "chunked"', 501),
                (b": \x0bchunked", 400),
                (b": chunked\x00", 400),
                (b" : chunked", 400),
                (b"\t: chunked", 400),
                (b": chunked\r\n chunked", 400),
                (b": chunked\r\nTransfer-Encoding: identity", 400),
            )
        ),
        *(
            pytest.param(b"POST /hot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body, 400, id=name)
            for name, body in (
                ("chunk of 2 ** 64 bytes", b"1" + b"0" * 16 + b"\r\nx"),
                ("chunk of 2 ** 63 bytes", b"8" + b"0" * 15 + b"\r\nx"),
                ("chunk of 4 GiB", b"100000000\r\nx"),
                ("negative chunk", b"-5\r\nhello\r\n0\r\n\r\n"),
                ("chunk of no size", b"\r\nhello\r\n0\r\n\r\n"),
                ("extension with LF", b"5;a=b\nhello\r\n0\r\n\r\n"),
                ("extension with CR", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
                ("chunk ends with LF", b"5\r\nhello\n0\r\n\r\n"),
                ("folded trailer", b"0\r\na: b\r\n c\r\n\r\n"),
            )
        ),
    ],
)
@pytest.mark.parametrize("path", [b"/hot", b"/read"])
def test_refused(bench: DoorBench, data: bytes, status: int, path: bytes) -> None:
    """Each is refused as early as possible, with an error of ours, and the connection is closed."""
    with bench.connect() as connection:
        connection.sendall(data.replace(b"/hot", path))
        (answer,) = split_answers(read_all(connection))
    assert answer[0] == status
    assert answer[1][b"connection"] == b"close"
    assert json.loads(answer[2])["code"]


@given(
    st.lists(st.binary(max_size=40).filter(bool), max_size=30),
    st.lists(st.sampled_from([b"", b"", b"", b";x", b';n="v"']), min_size=30, max_size=30),
    st.integers(1, 120),
)
def test_chunks_in_pieces(chunks: list[bytes], extensions: list[bytes], size: int) -> None:
    """Whole chunks and parts of them are decoded as h11 decodes them."""
    lines = zip(chunks, extensions, strict=False)
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk, extension in lines) + b"0\r\n\r\n"
    head = b"POST /hot HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    decoder, content = ChunkedBody(len(head), 2), b""
    for start in range(0, len(body), size):
        piece = body[start : start + size]
        assert decoder.feed(piece, 0) == len(piece)
        content += decoder.take()
    assert decoder.is_complete
    theirs = _of_h11(head + body)
    assert theirs is not None
    assert content == theirs[3]


@pytest.mark.parametrize(
    ("size", "count"),
    [
        pytest.param(1, 16_700, id="of one byte"),
        pytest.param(16, 22_000, id="of 16 bytes"),
        pytest.param(60, 300_000, id="of 60 bytes"),
    ],
)
@pytest.mark.parametrize("extension", [b"", b";x"])
def test_too_many_small_chunks(size: int, count: int, extension: bytes) -> None:
    """Every chunk takes time of the event loop, however small it is."""
    body = ChunkedBody(100, 2)
    chunk = b"%x%s\r\n%s\r\n" % (size, extension, bytes(size))
    with pytest.raises(ViTError, match="Send"):
        for _ in range(count // 100):
            body.feed(chunk * 100, 0)


def test_chunks_of_usual_sizes() -> None:
    """A body may be sent line by line."""
    body = ChunkedBody(100, 2)
    for _ in range(1000):
        body.feed((b"50\r\n" + bytes(80) + b"\r\n") * 400, 0)
    assert len(body.take()) == 32_000_000


@pytest.mark.parametrize("count", [1, 4])
def test_empty_lines_before_a_request_are_ignored(bench: DoorBench, count: int) -> None:
    """RFC 9112, section 2.2, asks servers to do so; some clients send one after a body."""
    assert [status for status, _ in _answers(bench, [b"\r\n" * count + _TWO[0] + b"\r\n" + _TWO[0]])] == [200, 200]
    assert [status for status, _ in _answers(bench, [b"\r", b"\n", *(bytes([byte]) for byte in _TWO[0])])] == [200]


_CLIENT_HEADS = st.sampled_from(
    [
        b"POST /hot HTTP/1.1\r\nHost: x\r\n%bX-A: y\r\n\r\n",
        b"POST /hot HTTP/1.1\r\n%bHost: x\r\nX-A: y\r\n\r\n",
        b"POST /hot HTTP/1.1\r\nHost: x\r\nX-A: y\r\n%b\r\n",
        b"%bPOST /hot HTTP/1.1\r\nHost: x\r\nX-A: y\r\n\r\n",
        b"POST /hot HTTP/1.1\r\nHost: x\r\n%bTransfer-Encoding: chunked\r\n\r\n",
        b"POST /hot HTTP/1.1\r\nHost: x\r\n%bContent-Length: 7\r\n\r\n",
        b"POST /hot HTTP/1.1\r\nHost: x\r\n%bcontent-length : 7\r\n\r\n",
        b"POST /hot HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n%b\r\n",
        b"POST /hot HTTP/1.0\r\n%b\r\n",
        b"POST /hot HTTP/1.1\r\n%b\r\n",
    ]
)
_LENGTH_LINES = st.sampled_from(
    [
        b"",
        b"Content-Length: 5\r\n",
        b"content-length: 5\r\n",
        b"Content-Length: 31\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: 05\r\n",
        b"Content-Length:5\r\n",
        b"Content-Length: 5 \r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: " + b"9" * 20 + b"\r\n",
    ]
)


@given(st.lists(st.tuples(_CLIENT_HEADS, _LENGTH_LINES), min_size=2, max_size=12))
@settings(max_examples=1000, deadline=None)
def test_a_cached_head_is_what_it_would_be_without_the_cache(heads: list[tuple[bytes, bytes]]) -> None:
    """Whatever was cached before, it is refused or has the same meaning; only the order of its headers may differ."""
    cache = HeadCache()
    for head, line in heads:
        data = head % line
        assert _meaning(cache.parse, data) == _meaning(parse_head, data)


def _meaning(parse: Callable[[bytes, int, int], Head], data: bytes) -> object:
    try:
        head = parse(data, 0, len(data) - 2)
    except ViTError as error:
        return error.message
    meaning = {name: value for name, value in vars(head).items() if name != "memo"}
    return {**meaning, "headers": sorted(head.headers), "has_body": head.has_body}


def test_the_cache_of_heads_is_bounded() -> None:
    """It stays bounded however many different heads a client sends, and however long they are."""
    cache = HeadCache()
    for number in range(1000):
        for padding in (b"", b"y" * 10_000):
            data = b"POST / HTTP/1.1\r\nHost: x\r\nX-A: %d%s\r\nContent-Length: 5\r\n\r\n" % (number, padding)
            before = len(cache)
            cache.parse(data, 0, len(data) - 2)
            assert len(cache) == min(MAX_HEADS, before + (not padding))
    assert len(cache) == MAX_HEADS
