"""The responses of a server that is starting."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from vit_api.errors import NotReady
from vit_api.web.openapi.schemas import HealthResponse
from vit_api.web.responses import error_body
from vit_api.web.starting import StartingAnswers

REASON = "The server is starting: the model is loading."


@pytest.fixture
def answers() -> StartingAnswers:
    return StartingAnswers("digits", 10.0)


def _parts(response: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    return int(status_line.split()[1]), dict(line.split(": ", 1) for line in lines), body


def test_it_is_alive(answers: StartingAnswers) -> None:
    """The liveness check finds a server that works."""
    status, headers, body = _parts(answers.respond(b"GET /health/live?x=1 HTTP/1.1\r\nhost: x", REASON))
    assert (status, json.loads(body)) == (200, {"status": "alive"})
    assert headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
def test_it_is_not_ready_and_says_why(answers: StartingAnswers, path: str) -> None:
    """The body has the fields of the server's own health."""
    status, headers, body = _parts(answers.respond(f"GET {path} HTTP/1.1".encode(), REASON))
    health = HealthResponse.model_validate_json(body, extra="forbid")
    assert (status, health.status, health.reason, health.model) == (503, "starting", REASON, "digits")
    assert not health.model_loaded
    assert headers["retry-after"].isdecimal()


@pytest.mark.parametrize(
    "request_line",
    [
        pytest.param(b"POST /predict HTTP/1.1", id="predict"),
        pytest.param(b"GET / HTTP/1.0", id="page"),
        pytest.param(b"POST /health/live HTTP/1.1", id="no probe"),
        pytest.param(b"\xff", id="no HTTP"),
    ],
)
def test_all_else_is_refused_in_the_usual_form(answers: StartingAnswers, request_line: bytes) -> None:
    """With Retry-After, and with the client's id of the request."""
    status, headers, body = _parts(answers.respond(request_line + b"\r\nX-Request-ID: mine", REASON))
    assert status == 503
    assert json.loads(body) == error_body(NotReady(f"{REASON} Retry shortly."), "mine")
    assert headers["retry-after"] == str(NotReady.retry_after_s)
    assert headers["x-request-id"] == "mine"
    assert int(headers["content-length"]) == len(body)


def test_problem_details_for_those_who_ask(answers: StartingAnswers) -> None:
    """As from the running server."""
    head = b"POST /predict HTTP/1.1\r\naccept: application/problem+json"
    _, headers, body = _parts(answers.respond(head, REASON))
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(body)["detail"] == f"{REASON} Retry shortly."


def test_head_has_no_body(answers: StartingAnswers) -> None:
    """The length is that of GET."""
    status, headers, body = _parts(answers.respond(b"HEAD /health/live HTTP/1.1", REASON))
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0


@pytest.mark.anyio
async def test_a_large_body_does_not_reset_the_connection(answers: StartingAnswers) -> None:
    """A client that sends all of its body first reads the response, though nothing reads the body."""
    ours, theirs = socket.socketpair()
    body = b"x" * 8 * 2**20

    def post() -> bytes:
        with theirs:
            theirs.sendall(b"POST /predict HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            return b"".join(iter(lambda: theirs.recv(65536), b""))

    ours.setblocking(False)
    with ours:
        answer = asyncio.create_task(answers.answer(ours, REASON))
        assert _parts(await asyncio.to_thread(post))[0] == 503
        await answer


@pytest.mark.anyio
async def test_a_client_that_sends_nothing_is_left(answers: StartingAnswers) -> None:
    """After the time limit, or once its headers are too long."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        with pytest.raises(TimeoutError):
            await StartingAnswers("digits", 0.01).answer(ours, REASON)
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        sending = asyncio.create_task(loop.sock_sendall(theirs, b"x" * 16 * 2**20))
        await answers.answer(ours, REASON)
        sending.cancel()
        with pytest.raises(BlockingIOError):
            theirs.recv(1)  # no response
