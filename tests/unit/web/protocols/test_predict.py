"""The routes `/predict` and `/predict/batch`: bodies, statuses and headers, with a fake classifier."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import httpx
import pytest

from tests.support.door_transport import DoorTransport
from vit_api.errors import BadImage, Overloaded
from vit_api.ipc.records import MAX_TOP_K, AnswerRecord, Prediction, Status
from vit_api.web.application import create_app
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source
from vit_api.web.observers.exchange import Exchange
from vit_api.web.protocols.predict import PredictRoutes
from vit_api.web.requests import RequestLimits
from vit_api.web.uploads import Uploads

pytestmark = pytest.mark.anyio

_TWENTY = Prediction(tuple(range(MAX_TOP_K)), (0.5,) * MAX_TOP_K, 0.05)


class Scripted:
    """A fake classifier whose result depends on the upload; also the encoder and an observer."""

    def __init__(self) -> None:
        self.cached = CachedPrediction(_TWENTY)
        self.max_pending_bytes = 10_000
        self.looked_for: list[bytes] = []
        self.bypasses: list[bool] = []
        self.encoded: list[int] = []
        self.exchanges: list[Exchange] = []

    def find(self, upload: bytes, parts: int = 0) -> ClassifierResult | None:
        self.looked_for.append(upload)
        return ClassifierResult(self.cached, Source.HIT) if upload == b"at once" else None

    async def classify(self, upload: bytes, deadline: float, **options: Any) -> ClassifierResult:
        self.bypasses.append(options["bypass_cache"])
        if upload == b"full":
            raise Overloaded("planted")
        if upload == b"bad":
            raise BadImage("planted")
        if upload == b"computed":
            return ClassifierResult(self.cached, Source.MISS, AnswerRecord(0, 1, Status.OK, _TWENTY, 7, 0.25, 0.5))
        if upload == b"shared":
            return ClassifierResult(self.cached, Source.COALESCED, AnswerRecord(0, 1, Status.OK, _TWENTY, 7, 0.25, 0.5))
        return ClassifierResult(self.cached, Source.HIT)

    def observe(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)

    def encode_response(self, output: Prediction, *, top_k: int | None, threshold: float = 0.0) -> dict[str, Any]:
        self.encoded.append(top_k)
        return {"predictions": [{"label": str(index)} for index in output.indices[:top_k]]}


async def post(scripted: Scripted, path: str, **options: Any) -> httpx.Response:
    """Send one request through the application, without a server."""
    anything: Any = scripted
    limits = Uploads(max_bytes=1000, max_count=32, max_total_bytes=10_000)
    routes = PredictRoutes(anything, anything, limits, frames=anything, model_name='a "model"')

    async def nothing() -> None:
        pass

    app = create_app(
        routes.routes(),
        [scripted],
        start=nothing,
        stop=nothing,
        request_limits=RequestLimits(max_pending_bytes=scripted.max_pending_bytes, request_timeout_s=30),
    )

    async with httpx.AsyncClient(transport=DoorTransport(app), base_url="http://test") as client:
        return await client.post(path, **options)


@pytest.mark.parametrize(
    ("uploads", "status", "codes"),
    [
        pytest.param(["good", "full"], 200, [None, "overloaded"], id="one result: a list"),
        pytest.param(["bad", "bad"], 200, ["bad_image", "bad_image"], id="only bad images: a list"),
        pytest.param(["full", "full"], 503, "overloaded", id="no result, our fault: a failure"),
        pytest.param(["bad", "full"], 503, "overloaded", id="no result, partly our fault: a failure"),
    ],
)
async def test_batch_status(uploads: list[str], status: int, codes: object) -> None:
    """If no image has a result and a failure is the server's fault, the response is a 503 with `Retry-After`."""
    response = await post(Scripted(), "/predict/batch", files=[("files", upload.encode()) for upload in uploads])
    body = response.json()
    assert response.status_code == status
    assert ([item.get("code") for item in body] if isinstance(body, list) else body["code"]) == codes
    assert ("retry-after" in response.headers) == (status == 503)


async def test_one_cache_entry_serves_every_top_k() -> None:
    """Any number of classes is served from one cache entry, which keeps the last two rendered responses."""
    scripted = Scripted()
    for top_k in (1, 20, 1, 20, 3, 20, 1):
        body = (await post(scripted, f"/predict?top_k={top_k}", content=b"cached")).json()
        assert [item["label"] for item in body["predictions"]] == [str(index) for index in range(top_k)]
        assert (body["cached"], body["model"]) == (True, 'a "model"')
    assert scripted.encoded == [1, 20, 3, 1], "the last two renderings are cached"


async def test_a_hit_is_answered_at_once() -> None:
    """Its headers, metrics and times are those of any other response."""
    scripted = Scripted()
    for upload in (b"at once", b"cached"):
        response = await post(scripted, "/predict?top_k=2", content=upload)
        body = response.json()
        assert (response.status_code, response.headers["x-cache"], body["cached"]) == (200, "hit", True)
        assert [item["label"] for item in body["predictions"]] == ["0", "1"]
    assert scripted.bypasses == [False], "only the second was classified"
    first, _ = scripted.exchanges
    assert (first.status, len(first.outcomes), first.request.endpoint) == (200, 1, "/predict")
    assert first.request.received_bytes == len(b"at once")
    assert first.request.timeline.parsed_at is not None


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        pytest.param("/predict", {"headers": {"cache-control": "no-cache"}}, 200, id="no-cache"),
        pytest.param("/predict?top_k=0", {}, 400, id="bad top_k"),
        pytest.param("/predict?topk=2", {}, 400, id="misspelt top_k"),
        pytest.param("/predict", {"headers": {"content-type": "application/json"}}, 200, id="declared as JSON"),
        pytest.param("/predict", {"headers": {"content-type": "multipart/form-data"}}, 400, id="declared as a form"),
        pytest.param("/predict", {"headers": {"content-encoding": "gzip"}}, 400, id="compressed"),
        pytest.param("/predict", {"content": b' {"image": 1}'}, 400, id="JSON"),
        pytest.param("/predict", {"content": '{"image": 1}'.encode("utf-16")}, 400, id="JSON in UTF-16"),
        pytest.param("/predict", {"content": b"--x\r\nContent-Disposition: form-data"}, 400, id="undeclared form"),
        pytest.param("/predict", {"content": b"x" * 1001}, 413, id="too long"),
    ],
)
async def test_what_is_not_a_plain_upload_is_not_looked_for(path: str, options: dict[str, Any], status: int) -> None:
    """Such a request is parsed, decoded, computed or refused first."""
    scripted = Scripted()
    response = await post(scripted, path, **{"content": b"\xffat once", **options})
    assert (response.status_code, scripted.looked_for) == (status, [])


@pytest.mark.parametrize(
    ("upload", "cache", "cached", "timing"),
    [
        pytest.param(b"cached", "hit", True, [None, None, None], id="hit"),
        pytest.param(b"computed", "miss", False, ["250.000", "500.000", "7"], id="miss"),
        pytest.param(b"shared", "coalesced", False, [None, None, None], id="coalesced"),
    ],
)
async def test_headers_and_body_report_the_source(
    upload: bytes, cache: str, cached: bool, timing: list[str | None]
) -> None:
    """Only a miss has the times and the batch size of its inference."""
    response = await post(Scripted(), "/predict", content=upload)
    names = ("x-queue-time-ms", "x-inference-time-ms", "x-batch-size")
    assert [response.headers.get(name) for name in names] == timing
    assert response.headers["x-cache"] == cache
    assert response.json()["cached"] is cached
    assert 0 < response.json()["processing_time_ms"] < 60_000


async def test_a_batch_lists_the_timings_of_its_images() -> None:
    """In the order of the images; a dash stands for one that failed, and for one that was cached."""
    uploads = ["computed", "bad", "cached", "shared", "computed"]
    response = await post(Scripted(), "/predict/batch", files=[("files", upload.encode()) for upload in uploads])
    assert response.headers["x-queue-times-ms"] == "250.000, -, -, -, 250.000"
    assert response.headers["x-inference-times-ms"] == "500.000, -, -, -, 500.000"
    assert response.headers["x-batch-sizes"] == "7, -, -, -, 7"
    response = await post(Scripted(), "/predict/batch", files=[("files", b"cached")])
    assert not [name for name in response.headers if name.startswith(("x-queue", "x-inference", "x-batch"))]


@pytest.mark.parametrize(
    ("value", "is_bypass"),
    [
        ("no-cache", True),
        ("max-age=0, No-Cache", True),
        ("max-age=60", False),
        ("x-no-cache", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
async def test_cache_control(path: str, value: str, is_bypass: bool) -> None:
    """The cache is bypassed if `no-cache` is one of the directives."""
    scripted = Scripted()
    files = [("file", b"cached"), ("files", b"cached")]
    response = await post(scripted, path, files=files, headers={"cache-control": value})
    assert response.status_code == 200
    assert scripted.bypasses == [is_bypass]


async def test_cache_control_in_two_lines() -> None:
    """Repeated headers are one list of directives."""
    scripted = Scripted()
    await post(
        scripted,
        "/predict",
        content=b"cached",
        headers=[("cache-control", "no-cache"), ("cache-control", "no-transform")],
    )
    assert scripted.bypasses == [True]


@pytest.mark.parametrize(
    ("query", "top_k"),
    [("", 5), ("top_k=3", 3), ("top_k=3&top_k=3", 3), ("other=1", 5), ("other=1&top_k=%32", 2), ("a=b&top_k=20", 20)],
)
async def test_top_k_in_any_query(query: str, top_k: int) -> None:
    """`top_k` is found among other parameters, percent-encoded or repeated."""
    assert len((await post(Scripted(), f"/predict?{query}", content=b"cached")).json()["predictions"]) == top_k


@pytest.mark.parametrize(
    "query",
    ["top_k=0", "top_k=21", "top_k=x", "top_k=1.5", "top_k=%ff", "top_k=-1", "top_k=3&top_k=4", "topk=3"],
)
async def test_bad_top_k(query: str) -> None:
    """Any other value is rejected."""
    assert (await post(Scripted(), f"/predict?{query}", content=b"cached")).json()["code"] == "bad_request"


_BASE64 = base64.b64encode(b"cached").decode()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"json": {"image": _BASE64, "top_k": 3}}, id="JSON"),
        pytest.param({"json": {"image": _BASE64, "top_k": "3", "user": {"id": 7}}}, id="JSON, as text"),
        pytest.param({"files": {"file": b"cached"}, "data": {"top_k": "3"}}, id="form"),
        pytest.param({"data": {"image": _BASE64, "top_k": "3"}}, id="form without a file"),
        pytest.param({"files": {"file": b"cached"}, "params": {"top_k": "3"}}, id="query of a form"),
        pytest.param({"json": {"image": _BASE64, "top_k": 3}, "params": {"top_k": "3"}}, id="the same twice"),
    ],
)
async def test_top_k_in_any_body(options: dict[str, Any]) -> None:
    """It may accompany the upload in the body, or be in the query."""
    response = await post(Scripted(), "/predict", **options)
    assert len(response.json()["predictions"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"json": {"image": _BASE64, "topK": 3}}, "Did you mean 'top_k'", id="slip in JSON"),
        pytest.param({"json": {"imgae": _BASE64}}, "Did you mean 'image'", id="slip for the image"),
        pytest.param({"json": {"image": "https://x.org/a.png"}}, "doesn't download", id="URL"),
        pytest.param({"json": {"image": _BASE64, "top_k": 3}, "params": {"top_k": "4"}}, "more than one", id="two"),
        pytest.param({"files": {"file": b"cached"}, "data": {"top-k": "3"}}, "Did you mean 'top_k'", id="slip, form"),
        pytest.param({"files": {"a": b"cached", "b": b"cached"}}, "'a' (1), 'b' (1)", id="two files"),
        pytest.param({"files": [("file", b"cached"), ("file", b"bad")]}, "'file' (2)", id="two in one field"),
    ],
)
async def test_bad_bodies(options: dict[str, Any], message: str) -> None:
    """The response is a 400 that names what was found."""
    response = await post(Scripted(), "/predict", **options)
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"files": {"image": b"cached"}}, id="another field"),
        pytest.param({"files": {"image": b"cached"}, "data": {"note": "x"}}, id="beside a text field"),
        pytest.param({"files": {"file": b"cached", "thumbnail": b"bad"}}, id="'file' among others"),
        pytest.param({"files": {"image": (None, f"data:image/png;base64,{_BASE64}")}}, id="data URL"),
        pytest.param({"files": {"file": (None, base64.b64encode(b"cached" + bytes(20)))}}, id="base64"),
        pytest.param({"content": gzip.compress(b"cached"), "headers": {"content-encoding": "gzip"}}, id="gzip"),
    ],
)
async def test_an_upload_is_found_where_clients_put_it(options: dict[str, Any]) -> None:
    """A form with one file needs no special name."""
    assert (await post(Scripted(), "/predict", **options)).json()["cached"] is True


@pytest.mark.parametrize("field", ["files", "files[]", "image"])
async def test_the_files_of_a_batch(field: str) -> None:
    """They are classified in order, from a field of any name."""
    files = [(field, b"cached"), (field, b"bad")]
    response = (await post(Scripted(), "/predict/batch", files=files, data={"top_k": "2"})).json()
    assert [len(response[0]["predictions"]), response[1]["code"]] == [2, "bad_image"]


@pytest.mark.parametrize("upload", [b"cached", b"bad", b"full", b"x" * 1001])
async def test_the_memory_of_a_body_is_released(upload: bytes) -> None:
    """It is released whatever the outcome; otherwise the second request would be rejected."""
    scripted = Scripted()
    scripted.max_pending_bytes = 1000
    first, second = [(await post(scripted, "/predict", content=upload)).status_code for _ in range(2)]
    assert first == second


async def test_without_room_for_the_body_the_request_is_turned_away() -> None:
    """The response is a 503 with `Retry-After`, and nothing is classified."""
    scripted = Scripted()
    scripted.max_pending_bytes = 4
    response = await post(scripted, "/predict", content=b"cached")
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert "retry-after" in response.headers
    assert scripted.bypasses == []


@pytest.mark.parametrize(
    ("upload", "status", "outcomes"),
    [
        pytest.param("cached", 200, ["hit"], id="a hit"),
        pytest.param("computed", 200, ["miss"], id="a miss"),
        pytest.param("bad", 400, ["bad_image"], id="a failure"),
    ],
)
async def test_observers_see_each_request_once(upload: str, status: int, outcomes: list[str]) -> None:
    """They get its status, its timestamps in order, its size and the outcome of its image."""
    scripted = Scripted()
    await post(scripted, "/predict", content=upload.encode())
    (exchange,) = scripted.exchanges
    request = exchange.request
    assert (exchange.status, request.received_bytes) == (status, len(upload))
    assert request.timeline.arrived_at <= request.timeline.parsed_at <= exchange.ended_at
    assert [o.source.value if isinstance(o, ClassifierResult) else o.code for o in exchange.outcomes] == outcomes


async def test_observers_see_every_image_of_a_batch() -> None:
    """Outcomes are in the order of the images, failures included."""
    scripted = Scripted()
    await post(scripted, "/predict/batch", files=[("files", upload) for upload in (b"cached", b"bad", b"computed")])
    (exchange,) = scripted.exchanges
    assert exchange.status == 200
    assert [type(outcome) for outcome in exchange.outcomes] == [ClassifierResult, BadImage, ClassifierResult]


async def test_observers_see_what_fastapi_answers() -> None:
    """They also see requests to paths that are not hot routes."""
    scripted = Scripted()
    await post(scripted, "/nowhere", content=b"x")
    (exchange,) = scripted.exchanges
    assert (exchange.status, exchange.outcomes, exchange.request.timeline.parsed_at) == (404, (), None)


@pytest.mark.parametrize("content", [b"at once", b"cached", b"new", b"full", b"bad"])
async def test_a_wait_is_confirmed_however_the_response_is_found(content: bytes) -> None:
    """A hit, which waits for nothing, confirms it as well."""
    response = await post(Scripted(), "/predict", content=content, headers={"prefer": "wait=7"})
    assert response.headers["preference-applied"] == "wait=7"
    assert "preference-applied" not in (await post(Scripted(), "/predict", content=content)).headers
