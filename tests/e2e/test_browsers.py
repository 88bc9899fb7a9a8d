"""Headers for browsers: cross-origin requests, and what pages may do."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, serve
from vit_api.access.origins import parse_origins
from vit_api.web.page.security_headers import page_headers

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_KEY = "a-key-of-this-test"
_FRIEND = "https://friend.example"
_OTHER_FRIEND = "http://localhost:3000"
_PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key,content-type"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Run a server with an API key and a rate limit, which allows pages of two origins."""
    with serve(api_servers=1, api_keys=_KEY, cors_origins=f"{_FRIEND}, {_OTHER_FRIEND}", rate_limit="2/day") as running:
        yield running


def _ask(server: RunningServer, method: str, path: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.request(method, server.url + path, content=_SEVEN, headers=named, timeout=60, **PLAIN_HTTP)


@pytest.mark.parametrize("origin", [_FRIEND, _OTHER_FRIEND])
@pytest.mark.parametrize("path", ["/predict", "/info"])
def test_a_preflight_needs_no_key(server: RunningServer, path: str, origin: str) -> None:
    """A preflight without a key succeeds, and allows the headers that carry a key."""
    response = _ask(server, "OPTIONS", path, origin=origin, **_PREFLIGHT)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-headers"] == "x-api-key,content-type"
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"origin": "https://foe.example"}, id="origin"),
        pytest.param({"origin": f"{_FRIEND}.foe.example"}, id="origin with an allowed prefix"),
        pytest.param({"origin": _FRIEND, "access-control-request-method": "DELETE"}, id="method"),
    ],
)
def test_other_preflights_are_rejected(server: RunningServer, changed: dict[str, str]) -> None:
    """A preflight that is not allowed gets an error in the API's form."""
    response = _ask(server, "OPTIONS", "/predict", **(_PREFLIGHT | changed))
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert response.headers.get("access-control-allow-origin") != changed["origin"] or "DELETE" in changed.values()


def test_scripts_can_read_every_answer(server: RunningServer) -> None:
    """Pages of an allowed origin can read predictions and errors: 401, 404 and 429."""
    answers = [
        _ask(server, "POST", "/predict", origin=_FRIEND, **headers) for headers in ({}, *[{"x_api_key": _KEY}] * 3)
    ] + [_ask(server, "GET", "/nowhere", origin=_FRIEND, x_api_key=_KEY)]
    assert [answer.status_code for answer in answers] == [401, 200, 200, 429, 404]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == _FRIEND
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        assert {"x-request-id", "x-cache", "retry-after", "ratelimit-remaining", "server-timing"} <= exposed
        assert answer.headers["vary"] == "Origin"


def test_scripts_of_other_origins_can_read_nothing(server: RunningServer) -> None:
    """Responses to other origins have no `Access-Control-Allow-Origin` header."""
    response = _ask(server, "GET", "/health", origin="https://foe.example")
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


def test_cross_origin_is_off_by_default(digits_server: RunningServer) -> None:
    """By default responses have no CORS headers, and a preflight gets a 405."""
    assert _ask(digits_server, "OPTIONS", "/predict", origin=_FRIEND, **_PREFLIGHT).status_code == 405
    response = _ask(digits_server, "POST", "/predict", origin=_FRIEND)
    assert response.status_code == 200
    assert not any(name.startswith("access-control-") for name in response.headers)


def test_origins() -> None:
    """The setting accepts origins in the form that browsers send, or `*`."""
    assert parse_origins("*") == ("*",)
    assert parse_origins("http://[::1]:8080, https://a.example") == ("http://[::1]:8080", "https://a.example")
    for wrong in ("null", "https://*.example", "HTTPS://A.example", "https://a.example/", ""):
        with pytest.raises(ValueError, match="without a path"):
            parse_origins(wrong)


@pytest.mark.parametrize("path", ["/predict", "/health", "/docs", "/docs/static/swagger-ui.css", "/nowhere"])
def test_responses_forbid_content_sniffing(digits_server: RunningServer, path: str) -> None:
    """Responses have `X-Content-Type-Options: nosniff`."""
    for response in (digits_server.predict(_SEVEN, path), digits_server.get(path)):
        assert response.headers["x-content-type-options"] == "nosniff"


def test_the_docs_run_only_their_own_scripts(digits_server: RunningServer) -> None:
    """Inline scripts are allowed only by hash, and only a Hugging Face Space may frame the page."""
    response = digits_server.get("/docs")
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["script-src"].startswith("'self' 'sha256-")
    assert "unsafe" not in policy["script-src"]
    assert policy["frame-ancestors"] == "'self' https://huggingface.co"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "x-frame-options" not in response.headers


def test_a_script_is_named_by_its_hash() -> None:
    """The hash matches the example in CSP Level 2, section 4.2.5."""
    policy = page_headers("<script>alert('Hello, world.');</script>")["content-security-policy"]
    assert "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='" in policy
