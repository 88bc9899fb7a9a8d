"""HTTP from real clients and from attackers, on a real server."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.door_bench import read_all, split_answers
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, paused, serve, wait_until, worker_of

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run a server with one HTTP process and short time limits."""
    with serve(api_servers=1, header_timeout_s=1, body_timeout_s=1, max_upload_mb=5) as running:
        yield running


def _post(body: bytes, path: str = "/predict", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def _ask(server: RunningServer, data: bytes) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return list(split_answers(read_all(connection)))


def _count(server: RunningServer, metric: str) -> float:
    for line in server.get("/metrics").text.splitlines():
        if line.startswith(metric + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


@pytest.mark.parametrize(
    "path", ["/health", "/info", "/metrics", "/", "/docs", "/openapi.json", "/v2", "/v2/models/digits"]
)
def test_head_is_answered_wherever_get_is(server: RunningServer, path: str) -> None:
    """HEAD gets the status and headers of GET, without a body."""
    get, head = server.get(path), httpx.head(server.url + path, timeout=30, **PLAIN_HTTP)
    assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("form", [["--data-binary", "@examples/digit-7.png"], ["-F", "file=@examples/digit-7.png"]])
@pytest.mark.parametrize(
    "options", [["--http2"], ["--http1.0"], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]]
)
def test_curl(server: RunningServer, form: list[str], options: list[str]) -> None:
    """An upgrade to HTTP/2 is ignored, and the body is read, raw or as a form."""
    command = ["curl", "-s", "--max-time", "30", *options, *form, server.url + "/predict"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    assert json.loads(answer)["predictions"][0]["label"] == "7"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        pytest.param(b"nonsense\r\n\r\n", 400, "bad_request", id="not HTTP"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200, 431, "headers_too_large", id="headers"),
        pytest.param(b"GET /" + b"a" * 70_000, 414, "uri_too_long", id="target"),
        pytest.param(_post(b"x" * 6_000_000)[:500_000], 413, "upload_too_large", id="too long"),
        pytest.param(_post(b"x", "/health"), 405, "method_not_allowed", id="wrong method"),
    ],
)
def test_refusals_are_ours(server: RunningServer, data: bytes, status: int, code: str) -> None:
    """Every refusal of a malformed request is JSON with a request id."""
    (answer,) = _ask(server, data)
    body = json.loads(answer[2])
    assert (answer[0], body["code"]) == (status, code)
    assert body["request_id"].encode() == answer[1][b"x-request-id"]


def test_a_hang_up_after_two_requests_is_counted(server: RunningServer) -> None:
    """Neither image is computed, both requests are counted, and no traceback is logged."""
    images = [_SEVEN + b"hang-up 1", _SEVEN + b"hang-up 2"]
    metric = 'inference_requests_total{endpoint="/predict",status="499"}'
    before, ran = _count(server, metric), server.get("/info").json()["workers"][0]["images"]
    with paused(worker_of(server)):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        connection.sendall(_post(images[0]) + _post(images[1]))
        wait_until(lambda: _is_queued(server))
        connection.close()
        wait_until(lambda: _count(server, metric) == before + 2)
    assert server.predict(_SEVEN, headers={"cache-control": "no-cache"}).status_code == 200
    assert server.get("/info").json()["workers"][0]["images"] == ran + 1
    assert "Traceback" not in server.log.read_text()


def test_a_half_closed_client_gets_its_answer(server: RunningServer) -> None:
    """The half-close while the model runs does not count as a disconnect."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        with paused(worker_of(server)):
            connection.sendall(_post(_SEVEN, "/predict", "cache-control: no-cache"))
            connection.shutdown(socket.SHUT_WR)
            wait_until(lambda: _is_queued(server))
        ((status, _, _),) = split_answers(read_all(connection))
    assert status == 200


def _is_queued(server: RunningServer) -> bool:
    return any(_count(server, f'inference_slots{{state="{state}"}}') > 0 for state in ("queued", "running"))


@pytest.fixture(scope="module")
def small_server() -> Iterator[RunningServer]:
    """Run a server with 256 descriptors."""
    with serve(program=_limited(256, 256), api_servers=1) as running:
        yield running


def _limited(soft: int, hard: int) -> tuple[str, ...]:
    return "-m", "tests.support.limited_server", str(soft), str(hard)


def test_unfinished_heads_block_no_client(small_server: RunningServer) -> None:
    """With 256 descriptors, waves of 250 such connections are evicted; one warning is logged, and they are counted.

    The first test of this server, which warns once in a while.
    """
    server = small_server
    with contextlib.ExitStack() as stack:
        for _ in range(250):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\n")
        assert [server.predict(_SEVEN).status_code for _ in range(20)] == [200] * 20
        assert _count(server, "inference_http_evicted_total") > 20
        log = server.log.read_text()
        assert log.count("closing the idlest") == 1
        assert "Too many open files" not in log


def test_the_descriptor_limit_is_raised() -> None:
    """The server raises its soft limit to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serve(program=_limited(300, hard), api_servers=1) as server:
        assert f'process_max_fds{{process="http-0"}} {hard}' in server.get("/metrics").text.replace(".0", "")


def test_a_steady_upload_succeeds_and_a_trickle_does_not(server: RunningServer) -> None:
    """4 MB at 2.6 Mbit/s take longer than any limit; a trickle is never silent for as long as one."""
    body = _SEVEN + bytes(4_000_000)
    with ThreadPoolExecutor(2) as pool:
        steady = pool.submit(_upload, server, body, 32_500)
        trickle = pool.submit(_upload, server, body, 100)
        assert steady.result(120) == 200
        assert trickle.result(120) == 408


def _upload(server: RunningServer, body: bytes, piece_bytes: int) -> int:
    """Send ten pieces of a body a second until an answer comes; return its status."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.1) as connection:
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode())
        for start in range(0, len(body), piece_bytes):
            connection.sendall(body[start : start + piece_bytes])
            with contextlib.suppress(TimeoutError):  # the pause between two pieces
                return int(connection.recv(4096).split()[1])
        connection.settimeout(60)
        return int(connection.recv(4096).split()[1])


_CROWDS = [
    pytest.param(b"", id="idle"),
    pytest.param(b"POST /predict HTTP/1.1\r\nhost: x\r\n", id="unfinished heads"),
    pytest.param(_post(_SEVEN)[:-1], id="unfinished bodies"),
    pytest.param(_post(bytes(1_000_000), "/nowhere")[:1000], id="refused bodies"),
    pytest.param(b"nonsense\r\n\r\n", id="malformed"),
    pytest.param(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", id="answered"),
    pytest.param(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 10, id="never read"),
]


@pytest.mark.parametrize("sent", _CROWDS)
def test_a_crowd_keeps_no_client_out(small_server: RunningServer, sent: bytes) -> None:
    """300 connections of one kind at `ulimit -n 256`: every other client is answered."""
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", small_server.port), timeout=60))
            with contextlib.suppress(OSError):
                connection.sendall(sent)
        assert [small_server.predict(_SEVEN).status_code for _ in range(20)] == [200] * 20
    log = small_server.log.read_text()
    assert "Too many open files" not in log
    assert "Traceback" not in log


def test_an_unread_answer_does_not_hold_up_a_stop() -> None:
    """A client asks for much and reads nothing; the server stops long before the drain time is over."""
    with (
        serve(api_servers=1, drain_timeout_s=3600) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=1) as connection,
    ):
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
