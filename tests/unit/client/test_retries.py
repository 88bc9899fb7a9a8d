"""Retries and timeouts of both clients, against a scripted server, without real waits."""

from __future__ import annotations

import io

import httpx
import pytest

from benchmarks.harness.servers import free_port
from tests.support.client_drivers import Driver
from tests.support.scripted_server import Fault, error, ok, scripted
from vit_api.client import (
    Busy,
    ClassifyError,
    Rejected,
    Retries,
    ServerFailed,
    TimedOut,
    Unreachable,
)
from vit_api.client.base import to_failure

pytestmark = pytest.mark.anyio

MOMENT = {"date": "Sun, 06 Nov 1994 08:49:37 GMT", "retry_after": "Sun, 06 Nov 1994 08:50:07 GMT"}


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "least_s"),
    [
        pytest.param({"retry_after": "30"}, 30.0, id="seconds"),
        pytest.param(MOMENT, 30.0, id="date"),
        pytest.param({}, 0.0, id="none"),
        pytest.param({"retry_after": "soon"}, 0.0, id="malformed"),
    ],
)
async def test_a_busy_server_is_retried(driver: Driver, status: int, headers: dict[str, str], least_s: float) -> None:
    """The client waits as long as Retry-After says, or slightly longer, and sends the same bytes again."""
    with scripted(error(status, "overloaded", **headers), ok()) as server:
        assert (await driver.classify(server.url, io.BytesIO(b"from a file"))).top.label == "7"
        assert [request.body for request in server.requests] == [b"from a file"] * 2
    (wait_s,) = driver.waits
    assert least_s <= wait_s <= least_s + Retries().first_wait_s


async def test_retries_are_limited(driver: Driver) -> None:
    """After the last try, the server's error is raised."""
    with scripted(handler=lambda _: error(503, "overloaded", retry_after="2")) as server:
        with pytest.raises(Busy, match="what is wrong") as raised:
            await driver.classify(server.url, client={"retries": Retries(tries=3)})
        assert len(server.requests) == 3
    assert (raised.value.code, raised.value.status, raised.value.request_id) == ("overloaded", 503, "id-1")
    assert raised.value.retry_after_s == 2.0


async def test_a_retry_beyond_the_time_limit_is_not_awaited(driver: Driver) -> None:
    """With a Retry-After of an hour, the client fails at once."""
    with scripted(error(503, "overloaded", retry_after="3600")) as server, pytest.raises(Busy) as raised:
        await driver.classify(server.url)
    assert raised.value.retry_after_s == 3600
    assert driver.waits == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        pytest.param(400, Rejected, id="400"),
        pytest.param(401, Rejected, id="401"),
        pytest.param(408, Rejected, id="408"),
        pytest.param(413, Rejected, id="413"),
        pytest.param(500, ServerFailed, id="500"),
    ],
)
async def test_other_errors_are_not_retried(driver: Driver, status: int, kind: type[ClassifyError]) -> None:
    """The same request would fail again."""
    with scripted(error(status, "a_code")) as server:
        with pytest.raises(kind) as raised:
            await driver.classify(server.url)
        assert len(server.requests) == 1
    assert raised.value.code == "a_code"


async def test_a_reset_connection_is_retried(driver: Driver) -> None:
    """Each retry uses a new connection."""
    with scripted(Fault.RESET, Fault.RESET, ok()) as server:
        assert (await driver.classify(server.url)).top.label == "7"
        assert server.connections == 3
    assert len(driver.waits) == 2


async def test_a_refused_connection_is_unreachable(driver: Driver) -> None:
    """The error has no status, and the network error is its cause."""
    with pytest.raises(Unreachable) as raised:
        await driver.classify(f"http://127.0.0.1:{free_port()}", client={"retries": Retries(tries=3)})
    assert (raised.value.code, raised.value.status, raised.value.request_id) == ("unreachable", None, None)
    assert raised.value.__cause__ is not None
    assert len(driver.waits) == 2


async def test_a_silent_server_times_out(driver: Driver) -> None:
    """A timeout is not retried: the server may still be working on the request."""
    with scripted(Fault.SILENCE) as server:
        with pytest.raises(TimedOut):
            await driver.classify(server.url, client={"timeout_s": 0.5})
        assert len(server.requests) == 1


async def test_a_slow_body_times_out(driver: Driver) -> None:
    """The time limit covers the body: the clock advances by 50 s at each reading."""
    driver.tick_s = 50.0
    with scripted(ok()) as server, pytest.raises(TimedOut):
        await driver.classify(server.url)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        pytest.param(httpx.ConnectTimeout, Unreachable, id="connect"),
        pytest.param(httpx.ReadTimeout, TimedOut, id="read"),
        pytest.param(httpx.WriteTimeout, TimedOut, id="write"),
    ],
)
def test_timeouts_of_httpx(raised: type[httpx.HTTPError], kind: type[ClassifyError]) -> None:
    """A connect timeout is Unreachable, which is retried; a timeout of a sent request is TimedOut, which is not."""
    assert type(to_failure(raised("too late"))) is kind
