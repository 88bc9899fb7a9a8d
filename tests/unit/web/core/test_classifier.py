"""The classifier, with a fake inference and a fake shared tier."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.remote_process import RemoteProcess
from tests.support.waiting import LONG_S, until
from vit_api.decoding.uploads import Pixels, Upload
from vit_api.errors import BadImage, DeadlineExceeded, NotReady
from vit_api.ipc.answer_table import AnswerTable
from vit_api.ipc.cache_board import CacheBoard, CacheTally
from vit_api.ipc.flight_board import FlightBoard, ProcessFlights
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import (
    ALL_CLASSES,
    EMBEDDING,
    MAX_TOP_K,
    PACKED_PREDICTION_BYTES,
    AnswerRecord,
    Prediction,
    Status,
)
from vit_api.metrics import LOOK_UP
from vit_api.urgency import Urgency
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.caller import ANY, Caller
from vit_api.web.core.classifier import Classifier
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source
from vit_api.web.core.shared_answers import SharedAnswers
from vit_api.web.core.shared_flights import SharedFlights
from vit_api.web.core.single_flight import FlightDeadline

pytestmark = pytest.mark.anyio
_LOW = Caller(urgency=Urgency.LOW)


class Model:
    """Classifies each upload by its first byte, and counts uploads; waits while `gate` is closed."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.uploads: list[Upload] = []
        self.urgencies: list[Urgency] = []
        self.deadlines: list[FlightDeadline] = []
        self.is_alone = False

    async def infer(
        self, upload: Upload, deadline: FlightDeadline, caller: Caller = ANY, parts: int = 0, *, is_alone: bool = False
    ) -> tuple[AnswerRecord, float]:
        self.is_alone = is_alone
        self.uploads.append(upload)
        self.urgencies.append(caller.urgency)
        self.deadlines.append(deadline)
        await self.gate.wait()
        data = upload.data if isinstance(upload, Pixels) else upload
        if data.startswith(b"!"):
            raise BadImage("planted")
        classes = 30 if parts & ALL_CLASSES else 1
        prediction = Prediction((data[0],) * classes, (0.0,) * classes, 1.0, b"ABCD" if parts & EMBEDDING else b"")
        return AnswerRecord(0, 1, Status.OK, prediction, 1, 0.001, 0.002), 0.003


class Shelf:
    """A shared tier in a dict; look-ups wait while `gate` is closed."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.entries: dict[bytes, Prediction] = {}
        self.asked = 0

    async def get(self, key: bytes) -> Prediction | None:
        found = self.entries.get(key)
        self.asked += not self.gate.is_set()
        await self.gate.wait()
        return found

    def put(self, key: bytes, prediction: Prediction) -> None:
        self.entries[key] = prediction


class Bench:
    """A classifier and its collaborators."""

    def __init__(
        self, *, size: int = 100, shelf: Shelf | None = None, identity: str = "model", max_bytes: int = 2**20
    ) -> None:
        self.model = Model()
        self.cache_board = CacheBoard(1)
        tally = CacheTally(self.cache_board, 0)
        cache: AnswerCache[CachedPrediction] | None = AnswerCache(size, 100, tally) if size else None
        long: AnswerCache[CachedPrediction] | None = None
        if size:
            long = AnswerCache(
                size, 100, tally, max_bytes=max_bytes, size_of=lambda cached: cached.size, gauge="long_entries"
            )
        self.classifier = Classifier(self.model, tally, lambda: identity, cache, shelf, long_cache=long)

    async def classify(self, upload: Upload, **options: Any) -> ClassifierResult:
        return await self.classifier.classify(upload, time.monotonic() + LONG_S, **options)

    async def sources(self, *uploads: Upload) -> list[str]:
        return [(await self.classify(upload)).source.value for upload in uploads]

    def counts(self) -> tuple[int, int, int]:
        totals = self.cache_board.totals()
        return totals["hits"], totals["misses"], totals["coalesced"]


@pytest.mark.parametrize("parts", [ALL_CLASSES, EMBEDDING, ALL_CLASSES | EMBEDDING])
async def test_long_answers_are_cached_apart(parts: int) -> None:
    """A caller that needs more never gets a shorter answer, and each choice of parts is computed once."""
    bench = Bench(shelf=Shelf())
    assert (await bench.classify(b"a")).source is Source.MISS
    assert bench.classifier.find(b"a", parts) is None
    first, second = await bench.classify(b"a", parts=parts), await bench.classify(b"a", parts=parts)
    assert (first.source, second.source) == (Source.MISS, Source.HIT)
    assert second.prediction == first.prediction
    assert len(second.prediction.indices) == (30 if parts & ALL_CLASSES else 1)
    assert bool(second.prediction.embedding) is bool(parts & EMBEDDING)
    found = bench.classifier.find(b"a", parts)
    assert found is not None
    assert found.prediction == first.prediction
    assert len((await bench.classify(b"a")).prediction.indices) == 1
    assert bench.cache_board.totals()["entries"] == 2


async def test_long_answers_keep_to_their_memory() -> None:
    """The oldest are evicted, and one that is larger than the whole cache is not cached; short ones stay."""
    bench = Bench(max_bytes=4000)
    for upload in (b"a", b"b", b"c", b"d", b"e"):
        await bench.classify(upload, parts=ALL_CLASSES)
        await bench.classify(upload)
    sources = [(await bench.classify(upload, parts=ALL_CLASSES)).source for upload in (b"e", b"a")]
    assert sources == [Source.HIT, Source.MISS]
    assert await bench.sources(b"a", b"e") == ["hit", "hit"]
    small = Bench(max_bytes=100)
    both = [(await small.classify(b"a", parts=ALL_CLASSES)).source for _ in range(2)]
    assert both == [Source.MISS, Source.MISS]


async def test_long_answers_are_cleared() -> None:
    """Clearing the caches clears the long answers, too."""
    bench = Bench()
    await bench.classify(b"a", parts=EMBEDDING)
    bench.cache_board.clear()
    assert (await bench.classify(b"a", parts=EMBEDDING)).source is Source.MISS


async def test_a_repeated_upload_is_a_hit() -> None:
    """It gets the first prediction, and no worker is asked."""
    bench = Bench()
    first, second = await bench.classify(b"a"), await bench.classify(b"a")
    assert (first.source, second.source) == (Source.MISS, Source.HIT)
    assert first.answer is not None
    assert second.answer is None
    assert second.cached.prediction == Prediction((ord("a"),), (0.0,), 1.0)
    assert bench.model.uploads == [b"a"]
    assert bench.counts() == (1, 1, 0)


async def test_a_hit_is_found_without_waiting() -> None:
    """Uploads that are not cached, or take long to hash, are left to `classify`."""
    bench, long = Bench(), bytes(2**20)
    assert bench.classifier.find(b"a") is None
    assert await bench.sources(b"b", b"a", long) == ["miss"] * 3
    found = bench.classifier.find(b"a")
    assert found is not None
    assert (found.source, found.answer, found.cached.prediction.indices) == (Source.HIT, None, (ord("a"),))
    assert bench.classifier.find(long) is None
    assert bench.counts() == (1, 3, 0)


async def test_what_was_looked_for_is_hashed_once_and_no_other_upload_gets_its_key() -> None:
    """The key is not used for another upload that comes first, nor for pixels of the same bytes."""
    bench, upload = Bench(), b"first"
    assert bench.classifier.find(upload) is None
    assert await bench.sources(b"other", upload, Pixels(upload)) == ["miss"] * 3
    assert bench.classifier.find(b"new") is None
    assert await bench.sources(Pixels(b"new"), b"new") == ["miss"] * 2
    assert await bench.sources(b"other", upload, b"new", Pixels(b"new")) == ["hit"] * 4


async def test_nothing_is_found_without_a_cache() -> None:
    """Every upload is computed."""
    bench = Bench(size=0)
    assert await bench.sources(b"a") == ["miss"]
    assert bench.classifier.find(b"a") is None


async def test_any_other_byte_is_another_upload() -> None:
    """The key covers every byte, of short and long uploads."""
    bench, long = Bench(), bytes(3 * 2**20)
    assert await bench.sources(b"a", b"b", b"ab", long, long[:-1], long) == ["miss"] * 5 + ["hit"]


async def test_pixels_are_not_the_file_with_the_same_bytes() -> None:
    """Pixels and a file with equal bytes have different keys; otherwise one could poison the other."""
    for data in (b"a", bytes(3 * 2**20)):
        bench, shelf = Bench(), Shelf()
        assert await bench.sources(data, Pixels(data), data, Pixels(data)) == ["miss", "miss", "hit", "hit"]
        bench = Bench(shelf=shelf)
        assert await bench.sources(Pixels(data), data) == ["miss", "miss"]
        assert len(shelf.entries) == 2


@pytest.mark.parametrize("upload", [pytest.param(b"a", id="short"), pytest.param(b"b" * 2**21, id="hashed in thread")])
async def test_identical_uploads_at_once(upload: bytes) -> None:
    """One inference runs, and each caller gets its result."""
    bench = Bench()
    bench.model.gate.clear()
    tasks = [asyncio.ensure_future(bench.classify(upload)) for _ in range(20)]
    await until(lambda: bench.counts()[2] == 19)
    bench.model.gate.set()
    results = await asyncio.gather(*tasks)
    assert len(bench.model.uploads) == 1
    assert {result.cached.prediction.indices for result in results} == {(upload[0],)}
    assert [result.source for result in results].count(Source.MISS) == 1


async def test_failures_are_not_cached() -> None:
    """A corrupt image is decoded again each time."""
    bench = Bench(shelf=(shelf := Shelf()))
    for _ in range(2):
        with pytest.raises(BadImage):
            await bench.classify(b"!")
    assert len(bench.model.uploads) == 2
    assert not shelf.entries
    assert bench.cache_board.totals()["entries"] == 0


async def test_bypassing_the_cache_computes_and_refreshes() -> None:
    """The new result replaces the cached one, here and in the shared tier."""
    shelf = Shelf()
    bench = Bench(shelf=shelf)
    await bench.classify(b"a")
    shelf.entries.clear()
    assert (await bench.classify(b"a", bypass_cache=True)).source is Source.MISS
    assert len(bench.model.uploads) == 2
    assert len(shelf.entries) == 1
    assert (await bench.classify(b"a")).source is Source.HIT


async def test_a_caller_that_bypasses_the_cache_does_not_join_a_look_up() -> None:
    """There are two flights, since the first one looks into the shared tier."""
    shelf = Shelf()
    await Bench(shelf=shelf).classify(b"a")
    bench = Bench(shelf=shelf)
    tasks = [asyncio.ensure_future(bench.classify(b"a", bypass_cache=bypass_cache)) for bypass_cache in (False, True)]
    old, fresh = await asyncio.gather(*tasks)
    assert (old.source, fresh.source) == (Source.HIT, Source.MISS)


async def test_any_caller_joins_one_that_bypasses_the_cache() -> None:
    """The result is fresh enough for any caller: one inference runs."""
    bench = Bench(shelf=Shelf())
    bench.model.gate.clear()
    tasks = [
        asyncio.ensure_future(bench.classify(b"a", bypass_cache=bypass_cache)) for bypass_cache in (True, False, True)
    ]
    await until(lambda: bench.counts()[2] == 2)
    bench.model.gate.set()
    sources = [result.source for result in await asyncio.gather(*tasks)]
    assert sources == [Source.MISS, Source.COALESCED, Source.COALESCED]
    assert len(bench.model.uploads) == 1


async def test_what_was_begun_before_a_clear_is_not_cached() -> None:
    """A result that was computed or looked up before a clear is cached in neither tier."""
    shelf = Shelf()
    bench = Bench(shelf=shelf)
    bench.model.gate.clear()
    task = asyncio.ensure_future(bench.classify(b"a"))
    await until(lambda: len(bench.model.uploads) == 1)
    bench.cache_board.clear()
    bench.model.gate.set()
    await task
    assert not shelf.entries
    assert await bench.sources(b"a", b"a") == ["miss", "hit"]

    other = Bench(shelf=shelf)
    shelf.gate.clear()
    task = asyncio.ensure_future(other.classify(b"a"))
    await until(lambda: shelf.asked > 0)
    other.cache_board.clear()
    shelf.entries.clear()
    shelf.gate.set()
    assert (await task).source is Source.HIT
    assert await other.sources(b"a") == ["miss"]


async def test_the_shared_tier_answers_another_process() -> None:
    """A shared result is a hit for all callers that wait, and is then cached locally."""
    shelf = Shelf()
    await Bench(shelf=shelf).classify(b"a")
    other = Bench(shelf=shelf)
    results = await asyncio.gather(other.classify(b"a"), other.classify(b"a"))
    assert [result.source for result in results] == [Source.HIT] * 2
    shelf.entries.clear()
    assert await other.sources(b"a") == ["hit"]
    assert other.model.uploads == []
    assert other.counts() == (2, 0, 1)


async def test_another_identity_is_another_key() -> None:
    """Servers with another model, revision, dtype or decode mode share no results."""
    shelf = Shelf()
    await Bench(shelf=shelf).classify(b"aa")
    assert await Bench(shelf=shelf, identity="model ").sources(b"aa") == ["miss"]
    # The identity's end and the upload's start can't be mistaken for each other.
    assert await Bench(shelf=shelf, identity="modela").sources(b"a") == ["miss"]


async def test_before_the_identity_is_known() -> None:
    """Look-ups raise NotReady until the identity is known, and succeed afterwards."""
    bench, is_known = Bench(), False

    def identity() -> str:
        if not is_known:
            raise NotReady("planted")
        return "model"

    bench.classifier._identity = identity
    with pytest.raises(NotReady):
        await bench.classify(b"a")
    is_known = True
    assert await bench.sources(b"a", b"a") == ["miss", "hit"]


async def test_without_a_cache_every_upload_is_computed() -> None:
    """Uploads are neither cached nor coalesced."""
    bench = Bench(size=0)
    bench.model.gate.clear()
    tasks = [asyncio.ensure_future(bench.classify(b"a")) for _ in range(3)]
    await until(lambda: len(bench.model.uploads) == 3)
    bench.model.gate.set()
    assert [result.source for result in await asyncio.gather(*tasks)] == [Source.MISS] * 3
    assert len(bench.model.uploads) == 3
    assert bench.model.is_alone  # no flight keeps the deadline


@pytest.mark.parametrize("bypass_cache", [True, False])
async def test_a_normal_caller_does_not_wait_for_a_low_computation(bypass_cache: bool) -> None:
    """It starts a computation in its own class."""
    bench = Bench()
    bench.model.gate.clear()
    low = asyncio.ensure_future(bench.classify(b"a", caller=_LOW, bypass_cache=bypass_cache))
    await until(lambda: len(bench.model.uploads) == 1)
    normal = asyncio.ensure_future(bench.classify(b"a", bypass_cache=bypass_cache))
    await until(lambda: len(bench.model.uploads) == 2)
    assert bench.model.urgencies == [Urgency.LOW, Urgency.NORMAL]
    bench.model.gate.set()
    results = await asyncio.gather(low, normal)
    assert [result.prediction.indices for result in results] == [(ord("a"),)] * 2
    assert not bench.classifier._low_flights.has_any


async def test_a_normal_answer_is_for_the_low_callers_too() -> None:
    """Their own computation, which may still wait for long, is cancelled."""
    bench = Bench()
    gates = {Urgency.LOW: asyncio.Event(), Urgency.NORMAL: asyncio.Event()}
    infer, cancelled = bench.model.infer, []

    async def by_urgency(
        upload: Upload, deadline: FlightDeadline, caller: Caller = ANY, parts: int = 0, **_: Any
    ) -> tuple[AnswerRecord, float]:
        try:
            await gates[caller.urgency].wait()
        except asyncio.CancelledError:
            cancelled.append(caller.urgency)
            raise
        return await infer(upload, deadline, caller)

    bench.model.infer = by_urgency  # type: ignore[method-assign]
    low = asyncio.ensure_future(bench.classify(b"a", caller=_LOW))
    await until(lambda: bench.counts()[1] == 1)
    gates[Urgency.NORMAL].set()
    assert (await bench.classify(b"a")).source is Source.MISS
    assert (await low).source is Source.COALESCED
    assert (await low).own_answer is None
    assert cancelled == [Urgency.LOW]


async def test_a_low_caller_may_wait_for_a_normal_computation() -> None:
    """The one in flight will finish first."""
    bench = Bench()
    bench.model.gate.clear()
    tasks = [asyncio.ensure_future(bench.classify(b"a", caller=Caller(urgency=urgency))) for urgency in Urgency]
    await until(lambda: bench.counts()[2] == 1)
    bench.model.gate.set()
    results = await asyncio.gather(*tasks)
    assert [result.source for result in results] == [Source.MISS, Source.COALESCED]
    assert bench.model.urgencies == [Urgency.NORMAL]


async def test_low_callers_share_a_computation() -> None:
    """They do as callers of normal urgency do; a cached result is a hit for any urgency."""
    bench = Bench()
    bench.model.gate.clear()
    tasks = [asyncio.ensure_future(bench.classify(b"a", caller=_LOW)) for _ in range(3)]
    await until(lambda: bench.counts()[2] == 2)
    bench.model.gate.set()
    await asyncio.gather(*tasks)
    assert bench.model.urgencies == [Urgency.LOW]
    assert {(await bench.classify(b"a", caller=Caller(urgency=urgency))).source for urgency in Urgency} == {Source.HIT}


async def test_a_settled_answer_must_not_be_older_than_a_caller_demands() -> None:
    """A result from the shared tier is not given to a caller that bypasses the cache."""
    shelf = Shelf()
    await Bench(shelf=shelf).classify(b"a")
    bench = Bench(shelf=shelf)
    bench.model.gate.clear()
    fresh = asyncio.ensure_future(bench.classify(b"a", caller=_LOW, bypass_cache=True))
    await until(lambda: len(bench.model.uploads) == 1)
    assert (await bench.classify(b"a")).source is Source.HIT
    assert not fresh.done()
    bench.model.gate.set()
    assert (await fresh).source is Source.MISS


async def test_a_caller_that_waits_longer_extends_the_deadline() -> None:
    """The workers must not skip an image that another caller is waiting for."""
    bench = Bench()
    bench.model.gate.clear()
    now = time.monotonic()
    tasks = [asyncio.ensure_future(bench.classifier.classify(b"a", now + wait_s)) for wait_s in (30, LONG_S, 40)]
    await until(lambda: bench.counts()[2] == 2)
    assert [deadline.at for deadline in bench.model.deadlines] == [now + LONG_S]
    bench.model.gate.set()
    await asyncio.gather(*tasks)


async def test_a_computation_that_gives_up_as_a_caller_joins() -> None:
    """The caller, whose deadline is later, has the upload computed again."""
    bench = Bench()
    bench.model.gate.clear()
    infer, calls = bench.model.infer, []

    async def expire_first(*arguments: Any, **options: Any) -> tuple[AnswerRecord, float]:
        calls.append(arguments)
        answer = await infer(*arguments, **options)
        if len(calls) == 1:
            raise DeadlineExceeded("planted")
        return answer

    bench.model.infer = expire_first  # type: ignore[method-assign]
    tasks = [asyncio.ensure_future(bench.classify(b"a")) for _ in range(3)]
    await until(lambda: bench.counts()[2] == 2)
    bench.model.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[0], DeadlineExceeded)
    assert [result.prediction.indices for result in outcomes[1:]] == [(ord("a"),)] * 2
    assert len(calls) == 2


async def test_look_ups_are_timed() -> None:
    """Look-ups that find something and those that don't are both timed."""
    board = MetricsBoard(["http-0"], [LOOK_UP])
    writer = board.metrics_writer("http-0")
    tally = CacheTally(CacheBoard(1), 0)
    look_up_s = (writer.counter(LOOK_UP, "hit"), writer.counter(LOOK_UP, "miss"))
    classifier = Classifier(Model(), tally, lambda: "model", AnswerCache(9, 100, tally), look_up_s=look_up_s)
    await classifier.classify(b"a", time.monotonic() + LONG_S)
    assert (board.totals(LOOK_UP)["hit",][0], board.totals(LOOK_UP)["miss",][0] > 0) == (0, True)
    await classifier.classify(b"a", time.monotonic() + LONG_S)
    assert board.totals(LOOK_UP)["hit",][0] > 0


class Server:
    """Two HTTP processes: this one, and a simulated one."""

    def __init__(self) -> None:
        self.bench = Bench()
        tally = CacheTally(self.bench.cache_board, 0)
        self.table, self.board = AnswerTable(2, 100, PACKED_PREDICTION_BYTES), FlightBoard(2)
        cache = AnswerCache[CachedPrediction](100, 100, tally, SharedAnswers(self.table, 0, tally))
        self.flights = SharedFlights(ProcessFlights(self.board, 0))
        classifier = Classifier(self.bench.model, tally, lambda: "model", cache, flights=self.flights)
        self.bench.classifier = classifier
        self.other = RemoteProcess(self.board, 1, self.table)

    def publish(self, key: bytes, prediction: Prediction) -> None:
        """Have the other process cache a prediction."""
        self.other("put", key, prediction.pack(), time.monotonic() + LONG_S, 0)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """Run two HTTP processes."""
    made = Server()
    made.flights.start()
    yield made
    made.flights.stop()
    made.other.kill()


_TOP = Prediction((7, 3), (1.5, 0.5), 0.75)


async def test_what_another_process_computed_is_a_hit(server: Server) -> None:
    """The model does not run, and each tier is counted."""
    server.publish(await server.bench.classifier._key_of(b"a", 0), _TOP)
    first, second = [await server.bench.classify(b"a") for _ in range(2)]
    assert (first.source, second.source) == (Source.HIT, Source.HIT)
    assert (first.prediction, server.bench.model.uploads) == (_TOP, [])
    assert server.bench.counts() == (2, 0, 0)
    assert server.bench.cache_board.totals()["shared_hits"] == 1


async def test_what_another_process_computes_is_waited_for(server: Server) -> None:
    """All callers here are coalesced, and get the other process's prediction."""
    key = await server.bench.classifier._key_of(b"a", 0)
    assert server.other("claim", key)
    tasks = [asyncio.ensure_future(server.bench.classify(b"a")) for _ in range(3)]
    await until(lambda: any(server.board.waiting))
    server.publish(key, _TOP)
    server.other("release", key)
    results = await asyncio.gather(*tasks)
    assert {result.source for result in results} == {Source.COALESCED}
    assert {result.prediction for result in results} == {_TOP}
    assert {result.own_answer for result in results} == {None}
    assert server.bench.model.uploads == []
    assert server.bench.counts() == (0, 0, 3)


async def test_what_another_process_fails_to_compute_is_computed_here(server: Server) -> None:
    """Its failure, such as an overload or a disconnect, may not apply here."""
    key = await server.bench.classifier._key_of(b"a", 0)
    assert server.other("claim", key)
    task = asyncio.ensure_future(server.bench.classify(b"a"))
    await until(lambda: any(server.board.waiting))
    server.other("release", key)
    assert (await task).source is Source.MISS
    assert server.other("claim", key)


@pytest.mark.parametrize("upload", [pytest.param(b"a", id="computed"), pytest.param(b"!", id="failed")])
@pytest.mark.parametrize("bypass_cache", [True, False])
async def test_while_this_process_computes_others_wait(server: Server, upload: bytes, bypass_cache: bool) -> None:
    """They wait until it has published the result or failed."""
    key, model = await server.bench.classifier._key_of(upload, 0), server.bench.model
    model.gate.clear()
    task = asyncio.ensure_future(server.bench.classify(upload, bypass_cache=bypass_cache))
    await until(lambda: len(model.uploads) == 1)
    assert not server.other("claim", key)
    model.gate.set()
    await asyncio.wait([task])
    assert server.other("claim", key)
    is_cached = server.table.get(key, time.monotonic(), 0) is not None
    assert is_cached == (task.exception() is None)


async def test_bypassing_the_cache_waits_for_no_other_process(server: Server) -> None:
    """The other computation may have begun earlier; its claim is kept."""
    key = await server.bench.classifier._key_of(b"a", 0)
    assert server.other("claim", key)
    assert (await server.bench.classify(b"a", bypass_cache=True)).source is Source.MISS
    assert server.other("release", key) is None


async def test_a_client_that_gives_up_lets_another_process_compute(server: Server) -> None:
    """A cancelled computation releases its claim."""
    key, model = await server.bench.classifier._key_of(b"a", 0), server.bench.model
    model.gate.clear()
    task = asyncio.ensure_future(server.bench.classify(b"a"))
    await until(lambda: len(model.uploads) == 1)
    task.cancel()
    await asyncio.wait([task])
    await until(lambda: bool(server.other("claim", key)))


def test_the_whole_top_20_is_cached() -> None:
    """Packing and unpacking keep every bit of a worker's answer."""
    top = Prediction(tuple(range(100, 100 + MAX_TOP_K)), tuple(1 / 2**k for k in range(1, MAX_TOP_K + 1)), 0.5)
    assert CachedPrediction(top).prediction == top


def test_a_long_rendering_is_not_cached() -> None:
    """The size of a cache entry is bounded, whatever clients request."""
    cached = CachedPrediction(Prediction((1,), (0.0,), 1.0))
    cached.add_rendered("short", b"x" * 512)
    cached.add_rendered("long", b"x" * 513)
    assert list(cached.rendered) == ["short"]
