"""Conventions that clients may follow, on a real server: errors, digests, rate limits, links, timings."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterator

import httpx
import pytest
from huggingface_hub.utils import parse_ratelimit_headers

from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, serve

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_PROBLEM = {"accept": "application/problem+json"}
_HOT_PATHS = ["/predict", "/predict/batch", "/", "/v2/models/digits/infer"]


@pytest.fixture(scope="module")
def limited_server() -> Iterator[RunningServer]:
    """Run a server with rate limits."""
    with serve(api_servers=1, rate_limit="2/minute; 100/hour") as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *[pytest.param("POST", path, 400, id=path) for path in _HOT_PATHS],
        pytest.param("GET", "/predict", 405, id="wrong method"),
        pytest.param("GET", "/nowhere", 404, id="unknown path"),
        pytest.param("POST", "/cache/clear", 403, id="forbidden"),
        pytest.param("GET", "/v2/models/other", 404, id="unknown model"),
    ],
)
def test_problem_details(digits_server: RunningServer, method: str, path: str, status: int) -> None:
    """Clients that accept RFC 9457 problems get them, with the members of every error."""
    response = httpx.request(method, digits_server.url + path, headers=_PROBLEM, timeout=30, **PLAIN_HTTP)
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["status"], problem["type"]) == (status, status, "about:blank")
    assert problem["detail"] == problem["error"]
    assert problem["request_id"] == response.headers["x-request-id"]
    plain = httpx.request(method, digits_server.url + path, timeout=30, **PLAIN_HTTP)
    assert plain.headers["content-type"] == "application/json"
    assert set(problem) - set(plain.json()) == {"type", "title", "status", "detail"}


def test_results_do_not_change_for_clients_that_accept_problems(digits_server: RunningServer) -> None:
    """Only errors are sent as problems."""
    response = digits_server.predict(_SEVEN, headers=_PROBLEM)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")


def _digest(content: bytes, algorithm: str = "sha-256") -> str:
    found = hashlib.new(algorithm.replace("-", ""), content).digest()
    return f"{algorithm}=:{base64.b64encode(found).decode()}:"


@pytest.mark.parametrize("path", ["/predict", "/"])
@pytest.mark.parametrize("name", ["Content-Digest", "Repr-Digest"])
@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
def test_digests_are_checked(digits_server: RunningServer, path: str, name: str, algorithm: str) -> None:
    """A body that does not match its digest (RFC 9530) is not classified."""
    headers = {name: _digest(_SEVEN, algorithm)}
    assert digits_server.predict(_SEVEN, path, headers=headers).status_code == 200
    response = digits_server.predict(_SEVEN + b"x", path, headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert f"does not match {name}: its {len(_SEVEN) + 1} bytes" in response.json()["error"]
    assert _digest(_SEVEN + b"x", algorithm) in response.json()["error"]


def test_a_digest_covers_the_compressed_body(digits_server: RunningServer) -> None:
    """The content coding is part of the content and of the representation."""
    body = gzip.compress(_SEVEN)
    headers = {"content-encoding": "gzip", "content-digest": _digest(body), "repr-digest": _digest(body)}
    assert digits_server.predict(body, headers=headers).status_code == 200
    headers["content-digest"] = _digest(_SEVEN)
    assert digits_server.predict(body, headers=headers).status_code == 400


def test_a_digest_of_a_chunked_body(digits_server: RunningServer) -> None:
    """The digest does not cover the chunked framing."""
    headers = {"content-digest": _digest(_SEVEN)}
    chunks = (_SEVEN[start : start + 100] for start in range(0, len(_SEVEN), 100))
    response = httpx.post(digits_server.url + "/predict", content=chunks, headers=headers, timeout=30, **PLAIN_HTTP)
    assert response.status_code == 200


def test_rate_limits_of_the_current_draft(limited_server: RunningServer) -> None:
    """The new fields, which huggingface_hub reads, follow the older ones, which are unchanged."""
    response = limited_server.predict(_SEVEN)
    assert response.headers.get_list("ratelimit-policy") == [
        "2;w=60, 100;w=3600",
        '"2_per_60s";q=2;w=60, "100_per_3600s";q=100;w=3600',
    ]
    reset = response.headers["ratelimit-reset"]
    assert response.headers["ratelimit"] == f'"2_per_60s";r=1;t={reset}'
    assert (response.headers["ratelimit-limit"], response.headers["ratelimit-remaining"]) == ("2", "1")
    info = parse_ratelimit_headers(response.headers)
    assert info is not None
    assert (info.resource_type, info.remaining, info.limit, info.window_seconds) == ("2_per_60s", 1, 2, 60)
    assert info.reset_in_seconds == int(reset)


@pytest.mark.parametrize("path", ["/", "/info"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_links_to_the_description(digits_server: RunningServer, method: str, path: str) -> None:
    """Tools find the description by its links (RFC 8631)."""
    response = httpx.request(method, digits_server.url + path, timeout=30, **PLAIN_HTTP)
    description = response.links["service-desc"]
    assert description["type"] == "application/json"
    found = httpx.get(response.url.join(description["url"]), timeout=30, **PLAIN_HTTP).json()
    assert found["openapi"].startswith("3.")
    docs = httpx.get(response.url.join(response.links["service-doc"]["url"]), timeout=30, **PLAIN_HTTP)
    assert docs.headers["content-type"].startswith("text/html")


_TIMES = ["x-compute-time", "x-total-time", "x-queue-time", "x-inference-time"]


def test_hugging_faces_timings(digits_server: RunningServer) -> None:
    """`POST /` has the headers of text-embeddings-inference, in integer milliseconds; a hit has no stages."""
    miss = digits_server.predict(_SEVEN, "/", headers={"cache-control": "no-cache"})
    assert miss.headers["x-compute-type"] == "cpu"
    times = [int(miss.headers[name]) for name in _TIMES]
    assert times[0] == times[1] >= times[2] + times[3]
    assert int(float(miss.headers["x-inference-time-ms"])) == times[3]
    hit = digits_server.predict(_SEVEN, "/")
    assert (hit.headers["x-cache"], hit.headers["x-compute-type"]) == ("hit", "cache")
    assert [name in hit.headers for name in _TIMES] == [True, True, False, False]
    assert "x-compute-type" not in digits_server.predict(_SEVEN).headers
