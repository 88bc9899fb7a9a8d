"""Which clients get problem details: RFC 9457."""

from __future__ import annotations

import pytest

from vit_api.errors import Overloaded
from vit_api.web.problem_details import prefers_problem, problem_of


@pytest.mark.parametrize(
    "accept",
    [
        b"application/problem+json",
        b"Application/Problem+JSON",
        b"application/json, application/problem+json",
        b"application/problem+json;q=0.5, */*;q=0.1",
        b"application/problem+json; charset=utf-8 ; q=1, application/json;q=0.9",
    ],
)
def test_clients_that_ask_for_problems(accept: bytes) -> None:
    """They name `application/problem+json`, and rank plain JSON no higher."""
    assert prefers_problem(accept)


@pytest.mark.parametrize(
    "accept",
    [
        b"",
        b"*/*",
        b"application/*",
        b"application/json",
        b"application/problem+xml",
        b"application/problem+json;q=0",
        b"application/problem+json;q=x",
        b"application/problem+json;q=0.5, application/json",
        b"application/problem+jsonx",
    ],
)
def test_all_others_get_what_they_always_got(accept: bytes) -> None:
    """A wildcard does not ask for problem details."""
    assert not prefers_problem(accept)


def test_a_problem_has_the_members_of_every_error() -> None:
    """Clients of either form find the members that they read."""
    error = Overloaded("The queue is full.")
    assert problem_of(error, {"error": error.message, "code": error.code, "request_id": "abc"}) == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "The queue is full.",
        "error": "The queue is full.",
        "code": "overloaded",
        "request_id": "abc",
    }
