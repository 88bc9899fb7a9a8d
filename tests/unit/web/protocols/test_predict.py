"""The handlers that classify, with a classifier that the test scripts: the answer's words, statuses and headers."""

from __future__ import annotations

import asyncio
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

_TWENTY = Prediction(tuple(range(MAX_TOP_K)), (0.5,) * MAX_TOP_K, 0.05)


class Scripted:
    """A classifier whose upload says what becomes of it; also the encoder."""

    def __init__(self) -> None:
        self.known = CachedPrediction(_TWENTY)
        self.max_pending_bytes = 10_000
        self.is_draining = False
        self.asked: list[bool] = []
        self.worded: list[int] = []
        self.exchanges: list[Exchange] = []

    async def classify(self, upload: bytes, deadline: float, *, bypass_cache: bool = False) -> ClassifierResult:
        self.asked.append(bypass_cache)
        if upload == b"full":
            raise Overloaded("planted")
        if upload == b"bad":
            raise BadImage("planted")
        if upload == b"computed":
            return ClassifierResult(self.known, Source.MISS, AnswerRecord(0, 1, Status.OK, _TWENTY, 7, 0.25, 0.5))
        if upload == b"shared":
            return ClassifierResult(self.known, Source.COALESCED, AnswerRecord(0, 1, Status.OK, _TWENTY, 7, 0.25, 0.5))
        return ClassifierResult(self.known, Source.HIT)

    def observe(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)

    def encode_response(self, output: Prediction, *, top_k: int) -> dict[str, Any]:
        self.worded.append(top_k)
        return {"predictions": [{"label": str(index)} for index in output.indices[:top_k]]}


def post(scripted: Scripted, path: str, **options: Any) -> httpx.Response:
    """Send one request through the application, without a server."""
    anything: Any = scripted
    limits = Uploads(max_bytes=1000, max_count=32, max_total_bytes=10_000)
    routes = PredictRoutes(anything, anything, limits, model_name='a "model"')

    async def nothing() -> None:
        pass

    app = create_app(
        routes.routes(),
        [scripted],
        start=nothing,
        stop=nothing,
        request_limits=RequestLimits(max_pending_bytes=scripted.max_pending_bytes, request_timeout_s=30),
        is_draining=lambda: scripted.is_draining,
    )

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=DoorTransport(app), base_url="http://test") as client:
            return await client.post(path, **options)

    return asyncio.run(send())


@pytest.mark.parametrize(
    ("uploads", "status", "codes"),
    [
        pytest.param(["good", "full"], 200, [None, "overloaded"], id="one answered: a list"),
        pytest.param(["bad", "bad"], 200, ["bad_image", "bad_image"], id="only bad images: a list"),
        pytest.param(["full", "full"], 503, "overloaded", id="none answered, our fault: a failure"),
        pytest.param(["bad", "full"], 503, "overloaded", id="none answered, partly our fault: a failure"),
    ],
)
def test_batch_status(uploads: list[str], status: int, codes: object) -> None:
    """A request of which nothing was answered for the server's fault is a 503 that says when to come back."""
    response = post(Scripted(), "/predict/batch", files=[("files", upload.encode()) for upload in uploads])
    body = response.json()
    assert response.status_code == status
    assert ([item.get("code") for item in body] if isinstance(body, list) else body["code"]) == codes
    assert ("retry-after" in response.headers) == (status == 503)


def test_one_entry_answers_every_top_k() -> None:
    """The first 1, then all 20 classes come from what is known; each wording is made once."""
    scripted = Scripted()
    for top_k in (1, 20, 1, 20, 3, 20, 1):
        body = post(scripted, f"/predict?top_k={top_k}", content=b"known").json()
        assert [item["label"] for item in body["predictions"]] == [str(index) for index in range(top_k)]
        assert (body["cached"], body["model"]) == (True, 'a "model"')
    assert scripted.worded == [1, 20, 3, 1], "the last two rendered are kept"


@pytest.mark.parametrize(
    ("upload", "cache", "cached", "timing"),
    [
        pytest.param(b"known", "hit", True, [None, None, None], id="hit"),
        pytest.param(b"computed", "miss", False, ["250.000", "500.000", "7"], id="miss"),
        pytest.param(b"shared", "coalesced", False, [None, None, None], id="coalesced"),
    ],
)
def test_headers_and_body_say_where_the_answer_comes_from(
    upload: bytes, cache: str, cached: bool, timing: list[str | None]
) -> None:
    """Only the request that the model ran for has the times of that run."""
    response = post(Scripted(), "/predict", content=upload)
    names = ("x-queue-time-ms", "x-inference-time-ms", "x-batch-size")
    assert [response.headers.get(name) for name in names] == timing
    assert response.headers["x-cache"] == cache
    assert response.json()["cached"] is cached
    assert 0 < response.json()["processing_time_ms"] < 60_000


@pytest.mark.parametrize(
    ("value", "is_fresh"),
    [
        ("no-cache", True),
        ("max-age=0, No-Cache", True),
        ("max-age=60", False),
        ("x-no-cache", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
def test_cache_control(path: str, value: str, is_fresh: bool) -> None:
    """`no-cache` among the directives asks for a fresh answer."""
    scripted = Scripted()
    files = [("file", b"known"), ("files", b"known")]
    response = post(scripted, path, files=files, headers={"cache-control": value})
    assert response.status_code == 200
    assert scripted.asked == [is_fresh]


def test_cache_control_in_two_lines() -> None:
    """Repeated headers belong together."""
    scripted = Scripted()
    post(
        scripted,
        "/predict",
        content=b"known",
        headers=[("cache-control", "no-cache"), ("cache-control", "no-transform")],
    )
    assert scripted.asked == [True]


@pytest.mark.parametrize(
    ("query", "top_k"),
    [("", 5), ("top_k=3", 3), ("top_k=3&top_k=3", 3), ("other=1", 5), ("other=1&top_k=%32", 2), ("a=b&top_k=20", 20)],
)
def test_top_k_in_any_query(query: str, top_k: int) -> None:
    """The plain query and any other way to write it mean the same."""
    assert len(post(Scripted(), f"/predict?{query}", content=b"known").json()["predictions"]) == top_k


@pytest.mark.parametrize(
    "query",
    ["top_k=0", "top_k=21", "top_k=", "top_k=x", "top_k=1.0", "top_k=%ff", "top_k=-1", "top_k=3&top_k=4", "topk=3"],
)
def test_bad_top_k(query: str) -> None:
    """Anything else is refused."""
    assert post(Scripted(), f"/predict?{query}", content=b"known").json()["code"] == "bad_request"


_BASE64 = base64.b64encode(b"known").decode()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"json": {"image": _BASE64, "top_k": 3}}, id="JSON"),
        pytest.param({"json": {"image": _BASE64, "top_k": "3", "user": {"id": 7}}}, id="JSON, as text"),
        pytest.param({"files": {"file": b"known"}, "data": {"top_k": "3"}}, id="form"),
        pytest.param({"data": {"image": _BASE64, "top_k": "3"}}, id="form without a file"),
        pytest.param({"files": {"file": b"known"}, "params": {"top_k": "3"}}, id="query of a form"),
        pytest.param({"json": {"image": _BASE64, "top_k": 3}, "params": {"top_k": "3"}}, id="the same twice"),
    ],
)
def test_top_k_in_any_body(options: dict[str, Any]) -> None:
    """Where the upload is, or in the query."""
    response = post(Scripted(), "/predict", **options)
    assert len(response.json()["predictions"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"json": {"image": _BASE64, "topK": 3}}, "Did you mean 'top_k'", id="slip in JSON"),
        pytest.param({"json": {"imgae": _BASE64}}, "Did you mean 'image'", id="slip for the image"),
        pytest.param({"json": {"image": "https://x.org/a.png"}}, "doesn't download", id="URL"),
        pytest.param({"json": {"image": _BASE64, "top_k": 3}, "params": {"top_k": "4"}}, "more than one", id="two"),
        pytest.param({"files": {"file": b"known"}, "data": {"top-k": "3"}}, "Did you mean 'top_k'", id="slip, form"),
        pytest.param({"files": {"a": b"known", "b": b"known"}}, "'a' (1), 'b' (1)", id="two files"),
        pytest.param({"files": [("file", b"known"), ("file", b"bad")]}, "'file' (2)", id="two in one field"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(options: dict[str, Any], message: str) -> None:
    """With a 400 that names what was found."""
    response = post(Scripted(), "/predict", **options)
    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"files": {"image": b"known"}}, id="another field"),
        pytest.param({"files": {"image": b"known"}, "data": {"note": "x"}}, id="beside a text field"),
        pytest.param({"files": {"file": b"known", "thumbnail": b"bad"}}, id="'file' among others"),
        pytest.param({"files": {"image": (None, f"data:image/png;base64,{_BASE64}")}}, id="data URL"),
        pytest.param({"files": {"file": (None, base64.b64encode(b"known" + bytes(20)))}}, id="base64"),
        pytest.param({"content": gzip.compress(b"known"), "headers": {"content-encoding": "gzip"}}, id="gzip"),
    ],
)
def test_an_upload_is_found_where_clients_put_it(options: dict[str, Any]) -> None:
    """A form with one file needs no special name."""
    assert post(Scripted(), "/predict", **options).json()["cached"] is True


@pytest.mark.parametrize("field", ["files", "files[]", "image"])
def test_the_files_of_a_batch(field: str) -> None:
    """In their order, in any one field."""
    files = [(field, b"known"), (field, b"bad")]
    response = post(Scripted(), "/predict/batch", files=files, data={"top_k": "2"}).json()
    assert [len(response[0]["predictions"]), response[1]["code"]] == [2, "bad_image"]


@pytest.mark.parametrize("upload", [b"known", b"bad", b"full", b"x" * 1001])
def test_the_room_that_a_body_takes_is_given_back(upload: bytes) -> None:
    """Whatever became of the request; else the second one would find no room."""
    scripted = Scripted()
    scripted.max_pending_bytes = 1000
    routes_used_twice = [post(scripted, "/predict", content=upload).status_code for _ in range(2)]
    assert routes_used_twice[0] == routes_used_twice[1]


def test_without_room_for_the_body_the_request_is_turned_away() -> None:
    """With a 503, before any of it is looked at."""
    scripted = Scripted()
    scripted.max_pending_bytes = 4
    response = post(scripted, "/predict", content=b"known")
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert "retry-after" in response.headers
    assert scripted.asked == []


@pytest.mark.parametrize(
    ("upload", "status", "outcomes"),
    [
        pytest.param("known", 200, ["hit"], id="a hit"),
        pytest.param("computed", 200, ["miss"], id="a miss"),
        pytest.param("bad", 400, ["bad_image"], id="a failure"),
    ],
)
def test_observers_see_each_request_once(upload: str, status: int, outcomes: list[str]) -> None:
    """With its status, its times in their order, its bytes and what became of its image."""
    scripted = Scripted()
    post(scripted, "/predict", content=upload.encode())
    (exchange,) = scripted.exchanges
    request = exchange.request
    assert (exchange.status, request.received_bytes) == (status, len(upload))
    assert request.timeline.arrived_at <= request.timeline.parsed_at <= exchange.ended_at
    assert [o.source.value if isinstance(o, ClassifierResult) else o.code for o in exchange.outcomes] == outcomes


def test_observers_see_every_image_of_a_batch() -> None:
    """In the request's order, failures among them."""
    scripted = Scripted()
    post(scripted, "/predict/batch", files=[("files", upload) for upload in (b"known", b"bad", b"computed")])
    (exchange,) = scripted.exchanges
    assert exchange.status == 200
    assert [type(outcome) for outcome in exchange.outcomes] == [ClassifierResult, BadImage, ClassifierResult]


def test_observers_see_what_fastapi_answers() -> None:
    """Unknown paths and probes, too."""
    scripted = Scripted()
    post(scripted, "/nowhere", content=b"x")
    (exchange,) = scripted.exchanges
    assert (exchange.status, exchange.outcomes, exchange.request.timeline.parsed_at) == (404, (), None)
