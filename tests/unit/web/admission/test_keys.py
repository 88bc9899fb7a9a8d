"""Keys of requests: where they are read from, and which paths are open."""

from __future__ import annotations

import pytest

from vit_api.access.api_keys import digest_of
from vit_api.web.admission.keys import KeyCheck, presented_key


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        pytest.param({b"authorization": b"Bearer abc"}, b"abc", id="bearer"),
        pytest.param({b"authorization": b"bEARER   abc "}, b"abc", id="in any case, with spaces"),
        pytest.param({b"x-api-key": b" abc "}, b"abc", id="X-API-Key"),
        pytest.param({b"authorization": b"Bearer proxy", b"x-api-key": b"abc"}, b"abc", id="both"),
        pytest.param({b"authorization": b"Bearer abc", b"x-api-key": b""}, b"abc", id="an empty X-API-Key"),
        pytest.param({b"authorization": b"Basic abc"}, b"", id="another scheme"),
        pytest.param({b"authorization": b"abc"}, b"", id="no scheme"),
        pytest.param({b"authorization": b"Bearer"}, b"", id="no key"),
        pytest.param({}, b"", id="nothing"),
    ],
)
def test_the_headers_of_a_key(headers: dict[bytes, bytes], key: bytes) -> None:
    """A key is read from either of two headers, and `X-API-Key` wins."""
    assert presented_key(headers) == key


@pytest.mark.parametrize("is_public", [False, True])
def test_metrics_may_be_public(is_public: bool) -> None:
    """No other path becomes public with them."""
    keys = KeyCheck([digest_of("a-plain-key")], has_public_metrics=is_public)
    assert keys.is_open("GET", "/metrics") is is_public
    assert not any(
        keys.is_open("GET", path) for path in ("/info", "/metrics/", "/predict", "/docs/", "/health/", "//health")
    )
