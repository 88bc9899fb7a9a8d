"""The header fields `Priority` and `Prefer`: what counts, and what is ignored, as their RFCs say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_api.urgency import Urgency
from vit_api.web.preferences import urgency_of, wait_of


@pytest.mark.parametrize("u", range(8))
@pytest.mark.parametrize(
    "form", ["u=%d", "u=%d, i", "i,u=%d", " u=%d;q=1 ", 'a=("b" 1;c);d, u=%d', "x=:YQ==:,\tu=%d", "u=0, u=%d"]
)
def test_urgency(u: int, form: str) -> None:
    """Up to 3, the default, is normal; of repeated members the last counts, and others are ignored."""
    assert urgency_of((form % u).encode()) is (Urgency.NORMAL if u <= 3 else Urgency.LOW)


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"i", id="no u"),
        pytest.param(b"u", id="a boolean"),
        pytest.param(b"u=8", id="out of range"),
        pytest.param(b"u=-7", id="negative"),
        pytest.param(b"u=7.0", id="a decimal"),
        pytest.param(b'u="7"', id="a string"),
        pytest.param(b"u=(7)", id="a list"),
        pytest.param(b"u=seven", id="a token"),
        pytest.param(b"U=7", id="upper case"),
        pytest.param(b"u=7,", id="a comma at the end"),
        pytest.param(b"u=7 i", id="no comma"),
        pytest.param(b"u=7, i=", id="no value"),
        pytest.param(b"u=7, x=\xff", id="not ASCII"),
        pytest.param(b'u=7, x="', id="an open string"),
        pytest.param(b"u=7, x=(1", id="an open list"),
        pytest.param(b"u=7777777777777777", id="too many digits"),
    ],
)
def test_a_priority_that_does_not_count(field: bytes) -> None:
    """The field is ignored, or its `u` is: the request is of normal urgency."""
    assert urgency_of(field) is Urgency.NORMAL


@pytest.mark.parametrize(
    ("field", "wait_s"),
    [
        (b"wait=2", 2),
        (b"Wait = 20", 20),
        (b'wait="3"', 3),
        (b"wait=0", 0),
        (b"respond-async, wait=10;x=y", 10),
        (b"return=minimal; foo, , wait=7", 7),
        (b'x="a, wait=9", wait=1', 1),
        (b"wait=2, wait=5", 2),
        (b"wait=" + b"9" * 100, 10**9),
        (b"", None),
        (b"wait", None),
        (b"wait=", None),
        (b"wait=soon", None),
        (b"wait=2.5", None),
        (b"wait=-1", None),
        (b"waits=2", None),
        (b"return=minimal", None),
        (b'x="', None),
        (b"x y, wait=2", None),
    ],
)
def test_wait(field: bytes, wait_s: int | None) -> None:
    """A number of seconds; of several the first counts. What is malformed is ignored."""
    assert wait_of(field) == wait_s


@given(st.binary(max_size=60) | st.text(alphabet='uiwat=0179(),;" \\:?@%', max_size=60).map(str.encode))
def test_any_field_is_survived(field: bytes) -> None:
    """No value of the fields raises anything."""
    assert urgency_of(field) in Urgency
    assert wait_of(field) is None or isinstance(wait_of(field), int)
