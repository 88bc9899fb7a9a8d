"""How the client reads responses and when it retries, without a network and with a fake clock."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.scripted_server import ANSWER
from vit_api import lit_api
from vit_api.client.answers import HttpAnswer, retry_after_s, to_classification, to_error
from vit_api.client.protocol import (
    DEFAULT_TOP_K,
    MAX_ANSWER_BYTES,
    Call,
    Reception,
    Retries,
    base_headers,
    predict_url,
)
from vit_api.client.results import (
    Busy,
    Classification,
    ClassifyError,
    Rejected,
    ServerFailed,
    TimedOut,
    UnexpectedAnswer,
    Unreachable,
)

NOW = 784_111_777.0  # the time in RFC 9110's examples


class FakeTime:
    """A clock that advances only when a test sets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now


def test_limits_equal_the_servers() -> None:
    """The client imports nothing of the server, so it has its own copies of the values."""
    assert lit_api.DEFAULT_TOP_K == DEFAULT_TOP_K


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("0", 0.0, id="no wait"),
        pytest.param("120", 120.0, id="seconds"),
        pytest.param(" 7 ", 7.0, id="spaces"),
        pytest.param("Sun, 06 Nov 1994 08:50:07 GMT", 30.0, id="date"),
        pytest.param("Sunday, 06-Nov-94 08:50:07 GMT", 30.0, id="RFC 850 date"),
        pytest.param("Sun Nov  6 08:50:07 1994", 30.0, id="asctime date"),
        pytest.param("Sun, 06 Nov 1994 08:00:00 GMT", 0.0, id="past"),
        pytest.param("", None, id="empty"),
        pytest.param("-5", None, id="negative"),
        pytest.param("1.5", None, id="fraction"),
        pytest.param("soon", None, id="text"),
        pytest.param("9" * 5000, None, id="too long"),
        pytest.param("١٢", None, id="non-ASCII digits"),
        pytest.param("Sun, 99 Nov 1994 08:50:07 GMT", None, id="no such day"),
    ],
)
def test_retry_after(value: str, expected: float | None) -> None:
    """Exactly the two forms of RFC 9110 are read."""
    assert retry_after_s({"retry-after": value}, NOW) == expected


def test_no_retry_after() -> None:
    """Without the header there is no wait."""
    assert retry_after_s({}, NOW) is None


@given(wait_s=st.integers(0, 10**6), skew_s=st.integers(-(10**7), 10**7))
def test_a_retry_after_date_is_relative_to_the_responses_date(wait_s: int, skew_s: int) -> None:
    """The local clock's skew has no effect."""
    sent = int(NOW) + skew_s
    dates = [format_datetime(datetime.fromtimestamp(t, UTC), usegmt=True) for t in (sent + wait_s, sent)]
    assert retry_after_s({"retry-after": dates[0], "date": dates[1]}, NOW) == wait_s


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *(pytest.param(status, Rejected, id=f"{status}") for status in (400, 408, 415)),
        *(pytest.param(status, Busy, id=f"{status}") for status in (429, 503)),
        *(pytest.param(status, ServerFailed, id=f"{status}") for status in (500, 502, 504)),
        *(pytest.param(status, UnexpectedAnswer, id=f"{status}") for status in (204, 308)),
    ],
)
def test_error_classes(status: int, kind: type[ClassifyError]) -> None:
    """The status determines the class, and the body the message."""
    body = json.dumps({"error": "what is wrong", "code": "a_code", "request_id": "id-1"}).encode()
    error = to_error(HttpAnswer(status, {"x-request-id": "id-2"}, body), NOW)
    assert type(error) is kind
    assert (error.message, error.code, error.status, error.request_id) == ("what is wrong", "a_code", status, "id-1")


def test_a_proxys_error_page() -> None:
    """A foreign body gives an error with a code, the status and the request id of the header."""
    answer = HttpAnswer(502, {"content-type": "text/html", "x-request-id": "id-2"}, b"<h1>Bad gateway</h1>")
    error = to_error(answer, NOW)
    assert (error.code, error.status, error.request_id) == ("http_502", 502, "id-2")
    assert "text/html" in error.message


def test_a_redirect_names_its_target() -> None:
    """The query, which may contain a token, is omitted."""
    error = to_error(HttpAnswer(307, {"location": "https://host/predict?token=secret"}, b""), NOW)
    assert "https://host/predict" in error.message
    assert "secret" not in error.message


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"predictions": {}}, id="predictions are an object"),
        pytest.param({"flagged": "yes"}, id="flagged is text"),
        pytest.param({"predictions": [{"label": 7, "confidence": 0.5}]}, id="label is a number"),
        pytest.param({"predictions": [{"label": "7", "confidence": True}]}, id="confidence is a boolean"),
        pytest.param({"predictions": [{"label": "7", "confidence": float("nan")}]}, id="confidence is NaN"),
        pytest.param({"predictions": [{"label": "7", "confidence": 10**400}]}, id="confidence is too large"),
        pytest.param({"predictions": "7"}, id="predictions are text"),
        pytest.param({"cached": 1}, id="cached is a number"),
        pytest.param({"model": None}, id="no model"),
        pytest.param({"processing_time_ms": "3"}, id="time is text"),
    ],
)
def test_malformed_results_raise(change: dict[str, Any]) -> None:
    """A response with status 200 is validated."""
    with pytest.raises(UnexpectedAnswer):
        to_classification(HttpAnswer(200, {}, json.dumps(ANSWER | change).encode()))


def _outcome(call: Call, answer: HttpAnswer) -> Classification | float | ClassifyError:
    call.begin()
    try:
        return call.judge(answer)
    except ClassifyError as error:
        return error


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*ANSWER, "error", "code", "label"]), inner),
    max_leaves=10,
)
_HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "date", "content-type", "location", "x-batch-size", "x-queue-time-ms"]), st.text()
)


@given(
    status=st.sampled_from([200, 200, 204, 302, 400, 404, 429, 500, 503, 599]) | st.integers(200, 999),
    headers=_HEADERS,
    body=st.binary() | _JSON.map(lambda value: json.dumps(value).encode()),
)
def test_any_response_is_read_or_raises(status: int, headers: dict[str, str], body: bytes) -> None:
    """No response of a server raises anything but a `ClassifyError`."""
    outcome = _outcome(Call(Retries(), 1.0, clock=lambda: 0.0), HttpAnswer(status, headers, body))
    if isinstance(outcome, float):
        assert status in (429, 503)
        assert 0 <= outcome < Retries().total_s


def test_deeply_nested_json() -> None:
    """A body that exceeds the parser's recursion limit is treated as a foreign one."""
    assert to_error(HttpAnswer(500, {}, b"[" * 10**6), NOW).code == "http_500"


@given(
    asked=st.lists(st.none() | st.integers(0, 100), max_size=30),
    tries=st.integers(1, 10),
    total_s=st.floats(0.1, 300),
    jitters=st.floats(0, 1),
)
def test_retries_stay_within_their_limits(asked: list[int | None], tries: int, total_s: float, jitters: float) -> None:
    """Tries and total time are bounded, and no wait is shorter than the server's Retry-After."""
    time = FakeTime()
    call = Call(Retries(tries, total_s, 0.25, 8.0), 10.0, clock=time.clock, jitter=lambda: jitters)
    made = 0
    for seconds in asked:
        headers = {} if seconds is None else {"retry-after": str(seconds)}
        outcome = _outcome(call, HttpAnswer(503, headers, b""))
        made += 1
        if not isinstance(outcome, float):
            assert isinstance(outcome, Busy)
            assert outcome.retry_after_s == seconds
            break
        assert (seconds or 0) <= outcome <= (seconds or 0) + min(8.0, 0.25 * 2 ** (made - 1))
        time.now += outcome
    assert made <= tries
    assert time.now < total_s


def test_a_try_is_limited_to_the_remaining_time() -> None:
    """The last try's timeout is what is left of the total time."""
    time = FakeTime()
    call = Call(Retries(total_s=15.0), 10.0, clock=time.clock)
    assert call.begin() == 10.0
    time.now = 12.0
    assert call.begin() == 3.0


def test_no_try_starts_after_the_time_limit() -> None:
    """If the wait took longer than planned, the previous error is raised again."""
    time = FakeTime()
    call = Call(Retries(total_s=15.0), 10.0, clock=time.clock)
    call.begin()
    failure = Unreachable("no connection")
    assert isinstance(call.judge(failure), float)
    time.now = 16.0
    with pytest.raises(Unreachable) as raised:
        call.begin()
    assert raised.value is failure


def test_a_trickling_body_times_out() -> None:
    """The limit is on the whole body, not on each read."""
    time = FakeTime()
    reception = Reception(10.0, time.clock)
    reception.add(b"{")
    time.now = 11.0
    with pytest.raises(TimedOut):
        reception.add(b"}")


def test_an_endless_body_raises() -> None:
    """Reading stops at MAX_ANSWER_BYTES."""
    reception = Reception(10.0, lambda: 0.0)
    reception.add(b" " * MAX_ANSWER_BYTES)
    with pytest.raises(UnexpectedAnswer):
        reception.add(b" ")


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        pytest.param("http://host:7860", "http://host:7860/predict", id="port"),
        pytest.param("https://host/", "https://host/predict", id="slash"),
        pytest.param("https://host/a/b", "https://host/a/b/predict", id="path prefix"),
        pytest.param("http://[::1]:7860", "http://[::1]:7860/predict", id="IPv6"),
    ],
)
def test_base_urls(base_url: str, expected: str) -> None:
    """A path prefix is kept."""
    assert predict_url(base_url) == expected


@pytest.mark.parametrize(
    "base_url",
    [
        pytest.param("", id="empty"),
        pytest.param("host:7860", id="no scheme"),
        pytest.param("ftp://host", id="another scheme"),
        pytest.param("http://", id="no host"),
        pytest.param("http://host:x", id="malformed port"),
        pytest.param("http://host?q", id="query"),
        pytest.param("http://u:secret@host", id="password"),
        pytest.param("http://[::1", id="malformed host"),
    ],
)
def test_invalid_base_urls_raise(base_url: str) -> None:
    """The message does not repeat a password."""
    with pytest.raises(ValueError, match="base URL") as raised:
        predict_url(base_url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("", id="empty"),
        pytest.param("two words", id="space"),
        pytest.param("line\nbreak", id="line break"),
        pytest.param("schlüssel", id="not ASCII"),
    ],
)
def test_invalid_keys_raise(key: str) -> None:
    """The message does not repeat a key that no header can contain."""
    with pytest.raises(ValueError, match="API key") as raised:
        base_headers(key)
    assert not key or key not in str(raised.value)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"tries": 0}, id="zero tries"),
        pytest.param({"tries": 101}, id="too many tries"),
        pytest.param({"total_s": 0}, id="zero time"),
        pytest.param({"first_wait_s": 9}, id="first wait above the maximum"),
    ],
)
def test_invalid_retries_raise(wrong: dict[str, Any]) -> None:
    """The constructor validates them."""
    with pytest.raises(ValueError, match="must be"):
        Retries(**wrong)


def test_errors_can_be_pickled() -> None:
    """Callers may classify in worker processes and pass errors back."""
    error = Busy("full", code="overloaded", status=503, request_id="id-1")
    error.retry_after_s = 2.0
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (Busy, "full", vars(error))
