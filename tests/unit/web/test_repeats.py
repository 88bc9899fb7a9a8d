"""Repeated requests: they get the answers, and are counted, as if each were the first one with its head."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.exchanges import checkpoint_of, scores_of
from vit_api import metrics
from vit_api.ipc.cache_board import CacheBoard, CacheTally
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import Prediction
from vit_api.labels.thresholds import Thresholds
from vit_api.urgency import Urgency
from vit_api.web.bodies import BodyMemory
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.classifier import Classifier
from vit_api.web.core.classifier_result import CachedPrediction
from vit_api.web.eager import EagerStart
from vit_api.web.entry import Entry
from vit_api.web.hot_calls import CallContext, HotCall
from vit_api.web.observers.exchange import Exchange
from vit_api.web.observers.prediction_metrics import FlaggedLabels, PredictionMetrics
from vit_api.web.observers.request_metrics import RequestMetrics
from vit_api.web.protocols.predict import PredictRoutes
from vit_api.web.repeats import Repeat
from vit_api.web.requests import Headers, Request
from vit_api.web.uploads import Uploads

_CACHED = b"\x89PNG" + bytes(3000)
_OTHER = b"\x89PNG" + bytes(2000)


class NoInference:
    """Fails the test if the model would run."""

    async def infer(self, *_: Any) -> Any:
        raise AssertionError("the model ran")


class Labels:
    """Renders predictions."""

    def encode_response(self, output: Prediction, *, top_k: int | None, threshold: float = 0.0) -> dict[str, Any]:
        return {"predictions": [{"label": "50 %", "index": index} for index in output.indices[:top_k]]}


class KeepAll:
    """An observer that records more than numbers."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def observe(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)


class Bench:
    """The hot routes of an HTTP process with one cached answer, and its metrics."""

    def __init__(self, *further: Any, **context: Any) -> None:
        checkpoint = checkpoint_of("a", "b", "c")
        self.board = MetricsBoard(["http-0"], metrics.counted_for(("a", "b", "c"), has_thresholds=True))
        self.caches = CacheBoard(1)
        writer, tally = self.board.metrics_writer("http-0"), CacheTally(self.caches, 0)
        flagged = FlaggedLabels(checkpoint, Thresholds({"a": 0.5}))
        self.cache: AnswerCache[CachedPrediction] = AnswerCache(10, 60.0, tally)
        self.classifier = Classifier(NoInference(), tally, lambda: "identity", self.cache)  # type: ignore[arg-type]
        anything: Any = None
        routes = PredictRoutes(
            self.classifier,
            Labels(),  # type: ignore[arg-type]
            Uploads(max_bytes=4000, max_count=2, max_total_bytes=8000),
            frames=anything,
            model_name="100 %",
        )
        observers = [RequestMetrics(writer), PredictionMetrics(writer, checkpoint, flagged), *further]
        self.entry = Entry(routes.routes(), anything, CallContext(BodyMemory(10_000), 30.0, observers, **context))
        self._routes = routes
        self.fill()

    def fill(self) -> None:
        """Cache the answer for an upload."""
        key = self.classifier._seed.copy()
        key.update(_CACHED)
        self.cache.put(key.digest(), CachedPrediction(scores_of(0.7, 0.2, 0.1)), self.caches.epoch)

    def replace_routes(self) -> None:
        """Serve other routes from now on, which are like those before."""
        self.entry.serve(self._routes.routes(), None)  # type: ignore[arg-type]

    def open(self, query: bytes = b"", sent: Headers = ()) -> HotCall:
        """Return a request whose body is not read yet."""
        scope = {"method": "POST", "path": "/predict", "query_string": query, "headers": sent, "client": ("1.2.3.4", 5)}
        call = self.entry.open(scope)
        assert call is not None
        return call

    def first(self, query: bytes = b"", body: bytes = _CACHED, **headers: str) -> tuple[HotCall, bytes]:
        """Answer a request as the first with its head; return it, and what is sent but for the common headers."""
        sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        sent.append((b"content-length", b"%d" % len(body)))
        call = self.open(query, sent)
        response = call.find_whole(body)
        assert response is not None
        call.end(response)
        self.repeat = call.repeat(response)
        return call, call.header_lines(response) + b"\r\n" + response.body

    def again(self, body: bytes = _CACHED) -> bytes | None:
        """Answer another request with the same head."""
        assert isinstance(self.repeat, Repeat)
        answer = self.repeat.find(bytes(bytearray(body)))  # each request has a body of its own
        if answer is not None:
            self.repeat.end(len(body))
        return answer

    def counts(self) -> dict[str, Any]:
        """Return everything that was counted, but for the sums of times."""
        hits = {"hits": self.caches.totals()["hits"]}
        named = (metrics.REQUESTS, metrics.DURATION, metrics.RECEIVED, metrics.PREDICTIONS, metrics.FLAGGED)
        return hits | {one.name: _without_sums(self.board.totals(one)) for one in named}


def _without_sums(totals: dict[Any, Any]) -> dict[Any, Any]:
    return {
        labels: sum(values[:-1]) if isinstance(values, list | tuple) else values for labels, values in totals.items()
    }


def _varying(answer: bytes) -> bytes:
    """Return an answer without what differs each time."""
    answer = re.sub(rb'"processing_time_ms":[0-9.]+', b'"processing_time_ms":0', answer)
    answer = re.sub(rb"content-length: [0-9]+", b"content-length: 0", answer)
    return re.sub(rb"x-request-id: [0-9a-f]+", b"x-request-id: 0", answer)


@pytest.mark.parametrize("query", [b"", b"top_k=2"])
def test_a_repeated_request_gets_the_same_answer(query: bytes) -> None:
    """Headers and body are those of the first one, but for the id and the time, and the length is right."""
    bench = Bench()
    _, first = bench.first(query)
    answers = [bench.again() for _ in range(3)]
    assert [_varying(answer or b"") for answer in answers] == 3 * [_varying(first)]
    assert len({re.search(rb"x-request-id: (\S+)", answer or b"")[1] for answer in [first, *answers]}) == 4  # type: ignore[index]
    for answer in answers:
        lines, _, body = (answer or b"").partition(b"\r\n\r\n")
        assert b"content-length: %d" % len(body) in lines


def test_a_form_is_parsed_each_time() -> None:
    """With the same head, and so the same boundary, the file of each form is looked up; one with fields is left."""
    bench = Bench()
    content_type = "multipart/form-data; boundary=b"
    _, first = bench.first(body=_form(_CACHED), content_type=content_type)
    assert _varying(bench.again(_form(_CACHED)) or b"") == _varying(first)
    assert _varying(bench.again(_form(_CACHED, "another.png")) or b"") == _varying(first)
    for other in (_form(_OTHER), _form(_CACHED, field=b"top_k=1"), _form(b""), _CACHED):
        assert bench.again(other) is None


def _form(file: bytes, filename: str = "a", field: bytes = b"") -> bytes:
    name, _, value = field.partition(b"=")
    extra = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name, value) if field else b""
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
    return extra + head.encode() + file + b"\r\n--b--\r\n"


def test_it_is_counted_as_any_other() -> None:
    """Hits, requests, durations, bytes, predictions and flags are those of as many first requests."""
    repeated, single = Bench(), Bench()
    repeated.first(priority="u=7")
    for _ in range(4):
        repeated.again()
    for _ in range(5):
        single.first(priority="u=7")
    assert repeated.counts() == single.counts()


def test_what_is_not_cached_is_left_to_others() -> None:
    """An unknown upload, one that is too long, and one whose answer was cleared are not answered here."""
    bench = Bench()
    bench.first()
    before = bench.counts()
    assert bench.again(_OTHER) is None
    assert bench.again(_CACHED + bytes(2000)) is None
    assert bench.counts() == before
    bench.caches.clear()
    assert bench.again() is None
    bench.fill()
    assert bench.again() is not None


def test_routes_that_are_served_no_longer_answer_nothing() -> None:
    """Once other routes take their place, each head is new."""
    bench = Bench()
    bench.first()
    bench.replace_routes()
    assert bench.again() is None
    bench.first()
    assert bench.again() is not None


@pytest.mark.parametrize(
    "headers",
    [pytest.param({"x_request_id": "their-own"}, id="with an id"), pytest.param({"x_request_id": "?"}, id="no id")],
)
def test_a_request_with_an_id_of_its_own_is_not_repeated(headers: dict[str, str]) -> None:
    """Its response has the client's id."""
    bench = Bench()
    bench.first(**headers)
    assert bench.repeat is None


def test_each_request_is_different_if_more_than_numbers_are_recorded() -> None:
    """An access log, a decision log or a trace has something of each request."""
    bench = Bench(KeepAll())
    bench.first()
    assert bench.repeat is None


def test_each_request_is_charged() -> None:
    """With a rate limit, no request is answered without asking it."""

    async def charge(_: Request) -> None: ...

    bench = Bench(charge=charge)
    call = bench.open()
    assert EagerStart(call.admit()).is_done
    response = call.find(_CACHED)
    assert response is not None
    assert call.repeat(response) is None


def test_headers_that_depend_on_the_head_stay() -> None:
    """The preference that was applied and the headers for another origin are those of the first response."""
    bench = Bench(cors_headers=lambda _: ((b"access-control-allow-origin", b"https://a.example/%20"),))
    _, first = bench.first(prefer="wait=5", origin="https://a.example")
    assert b"preference-applied: wait=5\r\n" in first
    assert b"access-control-allow-origin: https://a.example/%20\r\n" in first
    assert _varying(bench.again() or b"") == _varying(first)


def test_urgency_is_that_of_the_head() -> None:
    """A repeated request of low urgency is counted as one."""
    bench = Bench()
    bench.first(priority="u=7")
    bench.again()
    durations = _without_sums(bench.board.totals(metrics.DURATION))
    low = {labels: count for labels, count in durations.items() if Urgency.LOW.name.lower() in labels and count}
    assert list(low.values()) == [2]
