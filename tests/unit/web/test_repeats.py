"""Repeated requests: they get the answers, and are counted, as if each were the first one with its head."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn.server import ServerState

from tests.support.exchanges import checkpoint_of, scores_of
from vit_api import metrics
from vit_api.access.rate_limiter import Budgets, RateLimiter
from vit_api.access.rates import Rate
from vit_api.ipc.cache_board import CacheBoard, CacheTally
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import Prediction
from vit_api.labels.thresholds import Thresholds
from vit_api.urgency import Urgency
from vit_api.web import repeats
from vit_api.web.admission.rate_limits import RateLimits
from vit_api.web.bodies import BodyMemory
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.classifier import Classifier
from vit_api.web.core.classifier_result import CachedPrediction
from vit_api.web.door import known_requests
from vit_api.web.door.answers import DateHeader
from vit_api.web.door.connections import Connections
from vit_api.web.door.head_cache import HeadCache
from vit_api.web.door.known_requests import MAX_BYTES, MAX_REQUEST_BYTES, KnownRequests, LoopTurn
from vit_api.web.door.limits import DoorLimits
from vit_api.web.door.protocol import Door
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

    async def infer(self, *_: Any, **__: Any) -> Any:
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

    def first(
        self, query: bytes = b"", body: bytes = _CACHED, between: Callable[[], None] | None = None, **headers: str
    ) -> tuple[HotCall, bytes]:
        """Answer a request as the first with its head; return it, and what is sent but for the common headers.

        Args:
            query: Of its address.
            body: Its body.
            between: Called between its head and its body.
            headers: Its headers.
        """
        sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        sent.append((b"content-length", b"%d" % len(body)))
        call = self.open(query, sent)
        if between is not None:
            between()
        response = call.find_whole(body)
        assert response is not None
        call.end(response)
        self.repeat = call.repeat(response)
        return call, call.header_lines(response) + b"\r\n" + response.body

    def again(self, body: bytes = _CACHED) -> bytes | None:
        """Answer another request with the same head."""
        assert isinstance(self.repeat, Repeat)
        answer = self.repeat.find(bytes(bytearray(body)), None)  # each request has a body of its own
        if answer is not None:
            self.repeat.end(len(body), ("1.2.3.4", 5))
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


def test_a_request_that_outlasts_its_routes_is_not_repeated_by_them() -> None:
    """Its head came before others took their place, and its body after that: what it leaves behind answers nothing."""
    bench = Bench()
    bench.first(between=bench.replace_routes)
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


def test_each_hit_is_recorded_if_numbers_do_not_suffice() -> None:
    """An access log, a decision log and traces get of each what they would get of a first one."""
    kept = KeepAll()
    bench = Bench(kept)
    bench.first(priority="u=7")
    bench.again()
    doors = Doors(bench)
    door = doors.open()
    for _ in range(4):
        doors.exchange(door, _sent())
    first, *others = kept.exchanges
    assert len(others) == 5
    assert len({one.request.id for one in kept.exchanges}) == 6
    for one in others:
        assert (one.status, one.request.path, one.request.endpoint) == (200, "/predict", "/predict")
        assert one.request.received_bytes == first.request.received_bytes
        assert one.outcomes[0].upload == first.outcomes[0].upload  # type: ignore[union-attr]
        assert one.outcomes[0].source is first.outcomes[0].source  # type: ignore[union-attr]
        assert one.seconds >= 0
    assert others[0].request.address == "1.2.3.4"
    assert others[0].request.urgency is Urgency.LOW


@pytest.mark.parametrize("packets", [1, 2])
def test_each_request_is_charged(packets: int) -> None:
    """With a rate limit, each hit counts once, and says what is left; the one that exceeds it is refused, and no hit.

    Clients that send the head first are charged before the body is there.
    """
    rate = Rate(4, 86_400)
    limits = RateLimits(RateLimiter(Budgets([rate], 1), 0, clock=lambda: 1.0), [rate])
    bench = Bench(charge=limits.charge, limits=limits)
    doors = Doors(bench)
    door = doors.open()
    body_at = len(_sent()) - len(_CACHED) if packets == 2 else len(_sent())
    answers = [doors.exchange(door, _sent()[:body_at], _sent()[body_at:]) for _ in range(5)]
    left = [re.search(rb"\r\nratelimit-remaining: (\d)\r\n", answer)[1] for answer in answers]  # type: ignore[index]
    assert left == [b"3", b"2", b"1", b"0", b"0"]
    assert [answer[9:12] for answer in answers] == [b"200"] * 4 + [b"429"]
    assert {answer.count(b"ratelimit") for answer in answers} == {6}
    assert bench.counts()["hits"] == 4


def test_without_a_limit_that_can_be_asked_at_once_no_request_is_repeated() -> None:
    """If other servers have to be asked first, each request waits for them."""

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


class Loop:
    """An event loop of which a test ends each turn."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.later: list[Callable[[], None]] = []
        self.now = 1.0

    def time(self) -> float:
        return self.now

    def call_soon(self, work: Callable[[], None]) -> None:
        self.soon.append(work)

    def call_later(self, _: float, work: Callable[[], None], *__: Any) -> None:
        self.later.append(work)

    def end_turn(self) -> None:
        soon, self.soon = self.soon, []
        for work in soon:
            work()


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_extra_info(self, _: str) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None: ...


class Doors:
    """Connections to the hot routes of a bench, without sockets."""

    def __init__(self, bench: Bench) -> None:
        self.loop: Any = Loop()
        self.is_draining = False
        self.connections = Connections(DoorLimits(), lambda: self.is_draining)
        self.known = KnownRequests(LoopTurn(lambda: self.connections.is_draining))
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"today")]
        self._bench = bench

    def open(self) -> Door:
        anything: Any = None
        door = Door(
            self._bench.entry,
            self.connections,
            DateHeader(),
            HeadCache(),
            self.known,
            config=anything,
            server_state=self.state,
            app_state={},
            _loop=self.loop,
        )
        door.connection_made(Wire())  # type: ignore[arg-type]
        return door

    def exchange(self, door: Door, *parts: bytes) -> bytes:
        """Send something in packets, and return what is written until the end of the turn."""
        wire: Any = door.transport
        wire.written.clear()
        for part in parts:
            door.data_received(bytes(bytearray(part)))
        self.loop.end_turn()
        return b"".join(wire.written)

    def warm(self, request: bytes) -> Door:
        """Return a connection for which the request is known."""
        door = self.open()
        while not self.known.by_sample:
            self.exchange(door, request)
        return door


def _sent(body: bytes = _CACHED) -> bytes:
    return b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def test_a_known_request_gets_the_same_answer_and_is_counted_as_any_other() -> None:
    """Its head and body are compared only; the numbers are those of as many requests that are not known."""
    bench, other = Bench(), Bench()
    doors = Doors(bench)
    door = doors.open()
    answers = [doors.exchange(door, _sent()) for _ in range(3)]
    assert doors.known.by_sample
    answers += [doors.exchange(door, _sent()) for _ in range(2)]
    assert len({_varying(answer) for answer in answers}) == 1
    assert len({re.search(rb"x-request-id: (\S+)", answer)[1] for answer in answers}) == 5  # type: ignore[index]
    assert doors.state.total_requests == 5
    for _ in range(5):
        other.first()
    assert bench.counts() == other.counts()


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> float:
    """Stop the clock of known requests: on a busy machine one might take long, and be answered another way."""
    for module in (repeats, known_requests):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 5.0))
    return 5.0


def test_nothing_keeps_routes_that_are_served_no_longer() -> None:
    """Not an idle connection, nor the request that is known of it: they would keep a version that is unloaded."""
    bench, other = Bench(), Bench()
    doors = Doors(bench)
    door = doors.warm(_sent())
    doors.exchange(door, _sent())
    before = weakref.ref(bench.classifier)
    bench.classifier, bench._routes, bench.cache = other.classifier, other._routes, other.cache
    bench.replace_routes()
    gc.collect()
    assert door.head.memo.repeat is not None
    assert doors.known.by_sample
    assert before() is None
    assert doors.exchange(door, _sent()).startswith(b"HTTP/1.1 200")


@pytest.mark.usefixtures("stopped_clock")
def test_known_requests_of_a_turn_are_counted_at_its_end() -> None:
    """What several connections send in one turn is counted once, with as many hits."""
    bench = Bench()
    doors = Doors(bench)
    first, second = doors.warm(_sent()), doors.warm(_sent())
    doors.exchange(second, _sent())
    before = bench.counts()["hits"]
    for door in (first, second, first):
        door.data_received(_sent())
    assert bench.counts()["hits"] == before
    doors.loop.end_turn()
    assert bench.counts()["hits"] == before + 3


def test_the_idlest_connection_stays_the_first(stopped_clock: float) -> None:
    """A known request is a sign of life: the connection was idle for less than one without it."""
    doors = Doors(Bench())
    first, second = doors.warm(_sent()), doors.warm(_sent())
    doors.exchange(second, _sent())
    assert list(doors.connections.idle) == [first, second]
    doors.exchange(first, _sent())
    assert list(doors.connections.idle) == [second, first]
    assert first.since == stopped_clock


@pytest.mark.parametrize("change", ["clear", "routes", "drain"])
def test_a_known_request_is_found_out_again_if_something_has_changed(change: str) -> None:
    """After the caches were cleared, with other routes, and when the server drains."""
    bench = Bench()
    doors = Doors(bench)
    door = doors.warm(_sent())
    before = doors.exchange(door, _sent())
    if change == "clear":
        bench.caches.clear()
        bench.fill()
    elif change == "routes":
        bench.replace_routes()
    else:
        doors.is_draining = True
    after = doors.exchange(door, _sent())
    assert (b"connection: close\r\n" in after) == (change == "drain")
    assert _varying(after).replace(b"connection: close\r\n", b"") == _varying(before)
    assert bench.counts()["hits"] == doors.state.total_requests


def test_only_the_very_same_bytes_are_known() -> None:
    """Another head or body, a part of a request, and a request with another one behind it are parsed."""
    doors = Doors(Bench())
    door = doors.warm(_sent())
    one = doors.exchange(door, _sent())
    for parts in ((_sent() + _sent(),), (_sent()[:50], _sent()[50:] + _sent()), (_sent() + _sent()[:9], _sent()[9:])):
        assert _varying(doors.exchange(door, *parts)) == _varying(one) * 2
    changed = doors.exchange(door, _sent(_CACHED).replace(b"/predict HTTP", b"/predict?top_k=1 HTTP"))
    assert changed.count(b'"label"') == 1
    assert one.count(b'"label"') == 3


def test_known_requests_are_kept_for_a_limited_time_and_take_limited_memory() -> None:
    """All are dropped after a minute, and when there are too many."""
    doors = Doors(Bench())
    doors.warm(_sent())
    anything: Any = None
    for number in range(40):
        doors.known.add(number.to_bytes(4, "little") * (MAX_REQUEST_BYTES // 4), anything, doors.loop)
        assert sum(len(one.data) for one in doors.known.by_sample.values()) <= MAX_BYTES
    doors.known.add(bytes(MAX_REQUEST_BYTES + 1), anything, doors.loop)
    assert len(doors.known.by_sample) == 8
    doors.loop.later[-1]()
    assert not doors.known.by_sample


def test_a_known_request_that_takes_long_is_answered_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is not among those that are rendered already, nor in the first bucket of the histogram."""
    clock = iter(range(100))
    bench = Bench()
    doors = Doors(bench)
    door = doors.warm(_sent())
    for module in (repeats, known_requests):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    answer = doors.exchange(door, _sent())
    assert b'"processing_time_ms":1000.000' in answer
    assert b"content-length: %d\r\n" % len(answer.partition(b"\r\n\r\n")[2]) in answer
    assert bench.counts()["hits"] == doors.state.total_requests
