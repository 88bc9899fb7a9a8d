"""Paths with empty segments."""

from __future__ import annotations

from urllib.parse import urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_api.web.paths import plain_path, relative_location


@pytest.mark.parametrize("path", ["/", "/predict", "/v2/models/digits/infer", "*", "/a/../b", "/page/x.js"])
def test_plain_paths_stay(path: str) -> None:
    """Paths without empty segments are not changed."""
    assert plain_path(path) is None


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("/predict/", "/predict"),
        ("//predict", "/predict"),
        ("/predict//", "/predict"),
        ("//", "/"),
        ("///v2//models/digits//infer/", "/v2/models/digits/infer"),
        ("//evil.example/", "/evil.example"),
    ],
)
def test_empty_segments_are_left_out(path: str, plain: str) -> None:
    """They may be anywhere in the path."""
    assert plain_path(path) == plain


@given(st.text("ab./:", min_size=1).map("/{}".format), st.sampled_from(["", "top_k=2", "a=//b/"]))
def test_the_location_leads_to_the_plain_path(path: str, query: str) -> None:
    """It stays on the same host and below the same prefix; clients resolve dots before they send a path."""
    plain = plain_path(path)
    if plain is None or "." in path:
        return
    location = relative_location(path.encode(), query.encode()).decode()
    end = f"?{query}" if query else ""
    for prefix in (
        "http://host",
        *(() if "//" in path else ("http://host/prefix",)),
    ):  # not all that urljoin does is right
        assert urljoin(prefix + path, location) == prefix + plain + end
