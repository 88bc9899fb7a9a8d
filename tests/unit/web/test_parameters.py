"""Parameters from queries, forms and JSON."""

from __future__ import annotations

from typing import Any

import pytest

from vit_api.errors import BadRequest
from vit_api.web.parameters import Fields, collect, integer_of

_KNOWN = ("top_k", "threshold")


@pytest.mark.parametrize(
    ("query", "fields", "values"),
    [
        (b"", (), {}),
        (b"top_k=3", (), {"top_k": "3"}),
        (b"", [("top_k", 3)], {"top_k": 3}),
        (b"threshold=0.5", [("top_k", "3")], {"threshold": "0.5", "top_k": "3"}),
        (b"top_k=3&top_k=3", [("top_k", 3)], {"top_k": "3"}),
        (b"top_k=3", [("top_k", 3.0), ("threshold", 0.5)], {"top_k": "3", "threshold": 0.5}),
        (b"", [("top_k", None)], {}),
        (b"top_k=", [("top_k", " ")], {}),
        (b"top_k=%203", [("top_k", "3.0"), ("top_k", "+3"), ("top_k", 3)], {"top_k": "3"}),
        (b"top_k=+3.&threshold=%200.5%20", (), {"top_k": "3", "threshold": "0.5"}),
        (b"utm_source=x&other=1", [("user", "me"), ("options", {"a": 1})], {}),
    ],
)
def test_parameters_of_every_source(query: bytes, fields: Fields, values: dict[str, Any]) -> None:
    """The same value twice is one value, and unrelated names are ignored."""
    assert collect(_KNOWN, query, fields) == values


@pytest.mark.parametrize(
    ("query", "fields"),
    [(b"top_k=3&top_k=4", ()), (b"top_k=3", [("top_k", 4)]), (b"", [("top_k", "3"), ("top_k", "4")])],
)
def test_two_values_are_refused(query: bytes, fields: Fields) -> None:
    """Which one the client meant is unclear."""
    with pytest.raises(BadRequest, match="'top_k' has more than one value"):
        collect(_KNOWN, query, fields)


@pytest.mark.parametrize(
    "name",
    [
        "topk",
        "top-k",
        "topK",
        "Top_K",
        "TOP_K",
        "top.k",
        "top k",
        "top_k[]",
        "tok_p",
        "top_n",
        "k",
        "limit",
        "amp;top_k",
        "?top_k",
    ],
)
def test_a_slip_is_refused(name: str) -> None:
    """The error suggests the right name."""
    with pytest.raises(BadRequest, match="Did you mean 'top_k'"):
        collect(_KNOWN, b"", [(name, "3")])


@pytest.mark.parametrize("query", [b"amp;top_k=3", b"x=1&amp;top_k=3", b"?top_k=3", b"top_k[]=3"])
def test_a_slip_in_a_query(query: bytes) -> None:
    """Such queries were copied from HTML, or put together by hand."""
    with pytest.raises(BadRequest, match="Did you mean 'top_k'"):
        collect(_KNOWN, query)


def test_a_parameter_in_an_object_is_refused() -> None:
    """As the JSON of other APIs has it: ignored, it would seem to count."""
    with pytest.raises(BadRequest, match="'top_k' is in 'parameters'"):
        collect(_KNOWN, b"", [("parameters", {"a": 1, "top_k": 3})])


def test_a_slip_for_a_longer_name() -> None:
    """The nearest known name is suggested."""
    with pytest.raises(BadRequest, match="Did you mean 'threshold'"):
        collect(_KNOWN, b"treshold=1")


def test_a_query_of_very_many_parameters() -> None:
    """It is refused before any names are compared."""
    with pytest.raises(BadRequest, match="too many"):
        collect(_KNOWN, b"&".join(b"a%d=1" % i for i in range(5000)))


@pytest.mark.parametrize(("value", "number"), [("1", 1), ("20", 20), (7, 7), ("07", 7)])
def test_integers(value: Any, number: int) -> None:
    """They may be text, or numbers in JSON."""
    assert integer_of("top_k", value, 20) == number


@pytest.mark.parametrize("value", ["", "0", "21", "x", "1.0", "-1", "+1", "²", "9" * 5000, 0, 21, 1.0, True, None, []])
def test_anything_else_is_no_integer(value: Any) -> None:
    """The error says what is expected."""
    with pytest.raises(BadRequest, match="'top_k' must be an integer from 1 to 20, not "):
        integer_of("top_k", value, 20)
