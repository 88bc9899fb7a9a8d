"""The HTTP API of a real server: request forms, errors, and its description."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.samples import encode, photo
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, serve

_SEVEN = (ROOT / "examples" / "digit-7.png").read_bytes()
_MB = 2**20
_FRESH = {"cache-control": "no-cache"}


@pytest.fixture(scope="module")
def small_server() -> Iterator[RunningServer]:
    """Run a server with low limits: 1 MB, 256 pixels, few slots."""
    with serve(max_upload_mb=1, max_batch_upload_mb=2, max_image_side=256, queue_size=2, api_servers=1) as server:
        yield server


def _as_json(upload: bytes, prefix: str = "") -> bytes:
    return json.dumps({"image": prefix + base64.b64encode(upload).decode()}).encode()


@pytest.mark.parametrize(
    "request_options",
    [
        pytest.param({"files": {"file": ("seven.png", _SEVEN, "image/png")}}, id="multipart"),
        pytest.param({"files": {"file": _SEVEN}, "data": {"other": "field"}}, id="multipart with another field"),
        pytest.param({"content": _SEVEN}, id="raw, no type"),
        pytest.param({"content": _SEVEN, "headers": {"content-type": "image/jpeg"}}, id="raw, wrong type"),
        pytest.param({"content": _SEVEN, "headers": {"content-type": "application/json"}}, id="raw, labelled as JSON"),
        pytest.param({"content": iter([_SEVEN[:100], _SEVEN[100:]])}, id="raw, chunked"),
        pytest.param({"json": {"image": base64.b64encode(_SEVEN).decode()}}, id="JSON"),
        pytest.param({"content": _as_json(_SEVEN, "data:image/png;base64,")}, id="JSON, data URL, no type"),
    ],
)
def test_all_request_forms_give_the_same_result(digits_server: RunningServer, request_options: dict[str, Any]) -> None:
    """Raw, multipart and JSON uploads of one image get the same result."""
    headers = _FRESH | request_options.pop("headers", {})
    response = httpx.post(digits_server.url + "/predict", timeout=60, headers=headers, **request_options, **PLAIN_HTTP)
    assert response.status_code == 200, response.text
    body = response.json()
    assert set(body) == {"predictions", "cached", "processing_time_ms", "model"}
    assert [(p["label"], p["confidence"]) for p in body["predictions"]] == digits_server.top(_SEVEN)
    assert body["predictions"][0]["label"] == "7"
    assert body["model"] == "digits"
    assert body["cached"] is False
    assert body["processing_time_ms"] > 0


@pytest.mark.parametrize("top_k", [1, 5, 10, 20])
def test_top_k(digits_server: RunningServer, top_k: int) -> None:
    """The response has `top_k` classes, or all if there are fewer, most probable first."""
    top = digits_server.top(_SEVEN, top_k)
    assert len(top) == min(top_k, 10)
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)


def test_headers_report_the_stages(digits_server: RunningServer) -> None:
    """The headers have the request's own queue time, inference time and batch size."""
    response = digits_server.predict(_SEVEN, headers=_FRESH)
    assert float(response.headers["x-queue-time-ms"]) >= 0
    assert 0 < float(response.headers["x-inference-time-ms"]) < response.json()["processing_time_ms"]
    assert response.headers["x-batch-size"] == "1"


@pytest.mark.parametrize("path", ["/predict", "/health", "/nowhere"])
def test_a_valid_request_id_is_kept(digits_server: RunningServer, path: str) -> None:
    """The response repeats the client's id on every path."""
    response = digits_server.predict(_SEVEN, path, headers={"x-request-id": "abc-123.X"})
    assert response.headers["x-request-id"] == "abc-123.X"


@pytest.mark.parametrize(
    "bad", [pytest.param("a b", id="space"), pytest.param("x" * 200, id="long"), pytest.param("", id="empty")]
)
def test_an_invalid_request_id_is_replaced(digits_server: RunningServer, bad: str) -> None:
    """An id that could corrupt a log line is not repeated."""
    response = digits_server.predict(_SEVEN, headers={"x-request-id": bad})
    assert len(response.headers["x-request-id"]) == 32


_MULTIPART = {"content-type": "multipart/form-data; boundary=b"}
_FILE_PART = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'

_ERRORS = [
    pytest.param("/predict", b"", {}, 400, "empty_upload", id="empty body"),
    pytest.param("/predict", _FILE_PART + b"\r\n--b--\r\n", _MULTIPART, 400, "empty_upload", id="empty file"),
    pytest.param("/predict", b"", _MULTIPART, 400, "empty_upload", id="empty form"),
    pytest.param("/predict", _FILE_PART + b"cut", _MULTIPART, 400, "bad_request", id="truncated form"),
    pytest.param("/predict", _SEVEN, {"content-type": "multipart/form-data"}, 400, "bad_request", id="no boundary"),
    pytest.param("/predict", b"--b--\r\n", _MULTIPART, 400, "bad_request", id="form without file"),
    pytest.param(
        "/predict", (_FILE_PART + b"1\r\n") * 2 + b"--b--\r\n", _MULTIPART, 400, "bad_request", id="two files"
    ),
    pytest.param("/predict", b'{"image": ', {}, 400, "bad_request", id="malformed JSON"),
    pytest.param("/predict", b'["x"]', {"content-type": "application/json"}, 400, "bad_request", id="JSON list"),
    pytest.param("/predict", b'{"picture": "x"}', {}, 400, "bad_request", id="JSON without image"),
    pytest.param("/predict", b'{"image": 7}', {}, 400, "bad_request", id="JSON image is a number"),
    pytest.param("/predict", b'{"image": "***"}', {}, 400, "bad_request", id="not base64"),
    pytest.param("/predict", b'{"image": ""}', {}, 400, "empty_upload", id="empty base64"),
    pytest.param("/predict", b'{"image":[' + b"[]," * _MB, {}, 400, "bad_request", id="JSON with a million lists"),
    pytest.param("/predict", b"{" * 100_000, {}, 400, "bad_request", id="deep JSON"),
    pytest.param("/predict", _SEVEN[:-40], {}, 400, "bad_image", id="truncated image"),
    pytest.param("/predict", _SEVEN[:50] + b"\0" * 50 + _SEVEN[100:], {}, 400, "bad_image", id="corrupt image"),
    pytest.param("/predict", b"<html></html>", {"content-type": "image/png"}, 415, "unsupported_image", id="HTML"),
    pytest.param("/predict", b"%PDF-1.4 ...", {}, 415, "unsupported_image", id="PDF"),
    pytest.param("/predict?top_k=0", _SEVEN, {}, 400, "bad_request", id="top_k 0"),
    pytest.param("/predict?top_k=21", _SEVEN, {}, 400, "bad_request", id="top_k 21"),
    pytest.param("/predict?top_k=five", _SEVEN, {}, 400, "bad_request", id="top_k not a number"),
    pytest.param("/predict?top_k=" + "9" * 5000, _SEVEN, {}, 400, "bad_request", id="top_k huge"),
    pytest.param("/predict/batch", _SEVEN, {}, 400, "bad_request", id="batch, raw body"),
    pytest.param("/predict/batch", b"--b--\r\n", _MULTIPART, 400, "bad_request", id="empty batch"),
    pytest.param("/nowhere", _SEVEN, {}, 404, "not_found", id="unknown path"),
    pytest.param("/health", _SEVEN, {}, 405, "method_not_allowed", id="wrong method"),
]


@pytest.mark.parametrize(("path", "body", "headers", "status", "code"), _ERRORS)
def test_errors(
    digits_server: RunningServer, path: str, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    """Each error has its status and code, in the API's form."""
    response = digits_server.predict(body, path, headers=headers)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert set(response.json()) == {"error", "code", "request_id"}
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert not any(leak in response.text for leak in ("Traceback", 'File "', str(ROOT), "/tmp"))


def test_get_predict_is_not_allowed(digits_server: RunningServer) -> None:
    """`GET /predict` gets a 405 with `Allow: POST`."""
    response = digits_server.get("/predict")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(b"\x89PNG" + b"x" * _MB, "upload_too_large", id="too many bytes"),
        pytest.param(encode(photo((257, 20)), "PNG"), "image_too_large", id="too wide"),
    ],
)
def test_too_large(small_server: RunningServer, body: bytes, code: str) -> None:
    """Too many bytes or pixels get a 413."""
    response = small_server.predict(body)
    assert (response.status_code, response.json()["code"]) == (413, code)


def test_a_declared_length_over_the_limit_is_refused_before_the_body(small_server: RunningServer) -> None:
    """The response arrives before any of the body is sent."""
    with socket.create_connection(("127.0.0.1", small_server.port), timeout=30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_over_the_limit_is_refused(small_server: RunningServer) -> None:
    """A body without a declared length is refused once it exceeds the limit."""
    response = httpx.post(
        small_server.url + "/predict", content=(b"x" * 65536 for _ in range(20)), timeout=60, **PLAIN_HTTP
    )
    assert (response.status_code, response.json()["code"]) == (413, "upload_too_large")


def test_a_request_for_more_images_than_slots_is_answered_in_part(small_server: RunningServer) -> None:
    """With two slots, only the third image of a request fails."""
    files = [("files", _SEVEN + bytes([number])) for number in range(3)]
    results = httpx.post(small_server.url + "/predict/batch", files=files, timeout=60, **PLAIN_HTTP).json()
    assert [result.get("code") for result in results] == [None, None, "overloaded"]


def test_batch_keeps_order_and_isolates_faults(digits_server: RunningServer, held_out: list[tuple[bytes, str]]) -> None:
    """A corrupt image has an error at its position; the others get the same result as on their own."""
    uploads = [upload for upload, _ in held_out[:10]]
    sent = [*uploads[:4], b"not an image", *uploads[4:8], b"", uploads[8][:-30], uploads[9]]
    files = [("files", (f"{number}.png", upload)) for number, upload in enumerate(sent)]
    response = httpx.post(digits_server.url + "/predict/batch?top_k=3", files=files, timeout=60, **PLAIN_HTTP)
    assert response.status_code == 200
    results = response.json()
    assert [result.get("code") for result in results] == [
        *[None] * 4, "unsupported_image", *[None] * 4, "empty_upload", "bad_image", None,
    ]  # fmt: skip
    for upload, result in zip(sent, results, strict=True):
        if "code" not in result:
            _assert_same([(p["label"], p["confidence"]) for p in result["predictions"]], digits_server.top(upload, 3))


def _assert_same(ours: list[tuple[str, float]], theirs: list[tuple[str, float]]) -> None:
    """Compare with the tolerance of bfloat16, whose last bit may depend on the batch size."""
    assert [p for _, p in ours] == pytest.approx([p for _, p in theirs], abs=0.02)
    assert ours[0][0] == theirs[0][0]


@pytest.mark.parametrize("count", [32, 33])
def test_batch_takes_32_images(digits_server: RunningServer, count: int) -> None:
    """32 images are accepted, 33 are refused."""
    response = httpx.post(
        digits_server.url + "/predict/batch", files=[("files", _SEVEN)] * count, timeout=60, **PLAIN_HTTP
    )
    assert (response.status_code, len(response.json())) == ((200, 32) if count == 32 else (400, 3))


def test_health(digits_server: RunningServer) -> None:
    """A ready server returns 200 on each health path."""
    body = digits_server.get("/health").json()
    assert body == digits_server.get("/health/ready").json()
    assert (body["status"], body["model_loaded"], body["gpu_available"]) == ("ok", True, False)
    assert (body["device"], body["model"]) == ("cpu", "digits")
    assert digits_server.get("/health/live").status_code == 200


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/health/live"])
def test_probes_may_use_head(digits_server: RunningServer, path: str) -> None:
    """HEAD returns the same status and headers as GET, without a body."""
    response = httpx.head(digits_server.url + path, timeout=30, **PLAIN_HTTP)
    assert (response.status_code, response.content) == (200, b"")


def test_a_file_name_in_any_charset(digits_server: RunningServer) -> None:
    """File names in forms are ignored, so no charset is refused."""
    part = b'--b\r\ncontent-disposition: form-data; name="file"; filename="\xe9.png"\r\n\r\n'
    response = digits_server.predict(part + _SEVEN + b"\r\n--b--\r\n", headers=_MULTIPART)
    assert response.status_code == 200


def test_long_json_is_parsed(digits_server: RunningServer) -> None:
    """JSON that is parsed in a thread gets the same result."""
    padding = b" " * _MB
    response = digits_server.predict(_as_json(_SEVEN)[:-1] + padding + b"}")
    assert response.status_code == 200
    assert response.json()["predictions"][0]["label"] == "7"


def test_info_has_no_paths(digits_server: RunningServer) -> None:
    """`/info` has versions, settings and labels, but no paths of the machine."""
    response = digits_server.get("/info")
    body = response.json()
    assert (body["model"], body["labels"], body["input_shape"]) == ("digits", 10, [32, 32, 3])
    assert body["versions"]["litserve"] == "0.2.19"
    assert body["settings"]["max_batch_size"] == 32
    (worker,) = body["workers"]
    assert (worker["state"], worker["device"], worker["engine"]) == ("ready", "cpu", "eager")
    assert worker["startup_s"] > 0
    assert str(ROOT) not in response.text


def test_openapi_describes_every_path(digits_server: RunningServer) -> None:
    """The description has all paths, a file field, and the errors."""
    paths = digits_server.get("/openapi.json").json()["paths"]
    model = "/v2/models/{model_name}"
    starts = (model, f"{model}/versions/{{version}}")
    assert set(paths) == {
        "/",
        *("/v1/embeddings", "/v1/moderations"),
        *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/repository/index"),
        *(start + end for start in starts for end in ("", "/ready", "/config", "/stats", "/infer")),
        "/predict",
        "/predict/batch",
        "/health",
        "/health/ready",
        "/health/live",
        "/info",
        "/metrics",
        "/cache/clear",
    }
    predict = paths["/predict"]["post"]
    file = predict["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["file"]
    assert (file["type"], file["format"]) == ("string", "binary")
    assert set(predict["responses"]) == {"200", "400", "408", "413", "415", "500", "503", "504"}
    assert {"x-cache", "x-queue-time-ms", "x-inference-time-ms", "x-batch-size"} < set(
        predict["responses"]["200"]["headers"]
    )
    parameters = {p["name"]: p["schema"].get("maximum") for p in predict["parameters"]}
    assert parameters == {"top_k": None, "threshold": 1, "frames": 32, "Priority": None, "Prefer": None}


def test_docs_need_no_other_host(digits_server: RunningServer) -> None:
    """The docs page loads all its files from this server."""
    page = digits_server.get("/docs").text
    assert "https://" not in page
    for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f'"docs/static/{name}"' in page
        assert digits_server.get(f"/docs/static/{name}").status_code == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/predict", "/predict/batch", "/predict?top_k=x%00", "/docs/static/../..", "/predict/"]),
    content_type=st.sampled_from(
        ["", "multipart/form-data; boundary=b", "multipart/form-data; boundary=\xff", "application/json", "image/png"]
    ),
    start=st.sampled_from([b"", _FILE_PART, b'{"image":"', b"\x89PNG\r\n\x1a\n", _SEVEN[:200], b"GIF89a", b"II*\0"]),
    rest=st.binary(max_size=300),
)
def test_no_input_makes_a_500(
    digits_server: RunningServer, path: str, content_type: str, start: bytes, rest: bytes
) -> None:
    """Arbitrary bodies get a client error or a result, never a 500."""
    headers = {b"content-type": content_type.encode("latin-1")}
    response = httpx.post(digits_server.url + path, content=start + rest, headers=headers, timeout=60, **PLAIN_HTTP)  # type: ignore[arg-type]
    assert response.status_code < 500, response.text


def test_the_first_file_of_the_examples_is_a_digit() -> None:
    """The README's example image is in the repository."""
    assert Path(ROOT / "examples" / "digit-3.png").exists()


def test_an_error_says_how_long_it_took(digits_server: RunningServer) -> None:
    """Errors have a `Server-Timing` header as W3C specifies, which browsers show."""
    timing = digits_server.predict(b"no image").headers["server-timing"]
    assert timing.startswith("total;dur=")
    assert 0 < float(timing.partition("=")[2]) < 30_000


@pytest.mark.parametrize(
    ("method", "path", "methods"),
    [
        pytest.param("DELETE", "/", "GET, HEAD, POST", id="the page and Hugging Face's API"),
        pytest.param("POST", "/health", "GET, HEAD", id="a probe"),
        pytest.param("GET", "/predict", "POST", id="a path that classifies"),
    ],
)
def test_a_405_lists_the_allowed_methods(digits_server: RunningServer, method: str, path: str, methods: str) -> None:
    """`Allow` lists the methods that the resource supports (RFC 9110, section 10.2.1)."""
    response = httpx.request(method, digits_server.url + path, timeout=30, **PLAIN_HTTP)
    assert (response.status_code, response.headers["allow"]) == (405, methods)


@pytest.mark.parametrize("path", ["/%0A", "/predict%0A", "/predict/batch%0a", "/v2/models/digits/infer%0A", "/%00"])
def test_a_path_with_control_characters_is_not_found(digits_server: RunningServer, path: str) -> None:
    """A trailing line break gets a 404, although `$` in a pattern matches before it."""
    response = httpx.post(digits_server.url + path, content=b"x", timeout=30, **PLAIN_HTTP)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(("path", "field"), [("/predict", "image"), ("/", "inputs")])
def test_json_with_millions_of_numbers_is_refused(digits_server: RunningServer, path: str, field: str) -> None:
    """Parsing it would block all threads."""
    body = {field: "eA==", "more": [1.5] * 2000}
    response = httpx.post(digits_server.url + path, json=body, timeout=30, **PLAIN_HTTP)
    assert response.status_code == 400
    assert "more values than an upload" in response.json()["error"]
