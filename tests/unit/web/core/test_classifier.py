"""The HTTP half's core, with an inference and a shared tier that the test plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from vit_api.deadline import Deadline
from vit_api.decoding.uploads import Pixels, Upload
from vit_api.errors import BadImage, NotReady
from vit_api.ipc.cache_board import CacheBoard, CacheTally
from vit_api.ipc.records import MAX_TOP_K, AnswerRecord, Prediction, Status
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.classifier import CachedPrediction, Classifier, ClassifierResult, Source

_LONG_S = 60.0


class Model:
    """Answers each upload with its first byte as the class; counts them. Waits while `gate` is closed."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.uploads: list[Upload] = []

    async def infer(self, upload: Upload, deadline: Deadline) -> tuple[AnswerRecord, float]:
        self.uploads.append(upload)
        await self.gate.wait()
        data = upload.data if isinstance(upload, Pixels) else upload
        if data.startswith(b"!"):
            raise BadImage("planted")
        return AnswerRecord(0, 1, Status.OK, Prediction((data[0],), (0.0,), 1.0), 1, 0.001, 0.002), 0.003


class Shelf:
    """A shared tier in a dict; its answer waits while `gate` is closed."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.known: dict[bytes, Prediction] = {}

    async def get(self, key: bytes) -> Prediction | None:
        found = self.known.get(key)
        await self.gate.wait()
        return found

    def put(self, key: bytes, prediction: Prediction) -> None:
        self.known[key] = prediction


class Bench:
    """A classifier and its neighbours."""

    def __init__(self, *, size: int = 100, shelf: Shelf | None = None, identity: str = "model") -> None:
        self.model = Model()
        self.board = CacheBoard(1)
        tally = CacheTally(self.board, 0)
        cache: AnswerCache[CachedPrediction] | None = AnswerCache(size, 100, tally) if size else None
        self.classifier = Classifier(self.model, tally, lambda: identity, cache, shelf)

    async def classify(self, upload: Upload, **options: bool) -> ClassifierResult:
        return await self.classifier.classify(upload, time.monotonic() + _LONG_S, **options)

    async def sources(self, *uploads: Upload) -> list[str]:
        return [(await self.classify(upload)).source.value for upload in uploads]

    def counts(self) -> tuple[int, int, int]:
        totals = self.board.totals()
        return totals["hits"], totals["misses"], totals["coalesced"]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario on an event loop."""

    async def whole() -> None:
        await scenario()

    asyncio.run(asyncio.wait_for(whole(), _LONG_S))


def test_a_repeated_upload_is_a_hit() -> None:
    """With the prediction of the first, and no answer of a worker."""

    async def scenario() -> None:
        bench = Bench()
        first, second = await bench.classify(b"a"), await bench.classify(b"a")
        assert (first.source, second.source) == (Source.MISS, Source.HIT)
        assert first.answer is not None
        assert second.answer is None
        assert second.known.prediction == Prediction((ord("a"),), (0.0,), 1.0)
        assert bench.model.uploads == [b"a"]
        assert bench.counts() == (1, 1, 0)

    run(scenario)


def test_any_other_byte_is_another_upload() -> None:
    """The key covers all of it, short or long."""

    async def scenario() -> None:
        bench, long = Bench(), bytes(3 * 2**20)
        assert await bench.sources(b"a", b"b", b"ab", long, long[:-1], long) == ["miss"] * 5 + ["hit"]

    run(scenario)


def test_pixels_are_not_the_file_with_the_same_bytes() -> None:
    """Neither is answered with what is remembered of the other, short or long; else one could plant an answer."""

    async def scenario() -> None:
        for data in (b"a", bytes(3 * 2**20)):
            bench, shelf = Bench(), Shelf()
            assert await bench.sources(data, Pixels(data), data, Pixels(data)) == ["miss", "miss", "hit", "hit"]
            bench = Bench(shelf=shelf)
            assert await bench.sources(Pixels(data), data) == ["miss", "miss"]
            assert len(shelf.known) == 2

    run(scenario)


def test_identical_uploads_at_once() -> None:
    """One inference, and each gets its answer; long uploads, too, which are hashed in threads."""

    async def scenario() -> None:
        for upload in (b"a", b"b" * 2**21):
            bench = Bench()
            bench.model.gate.clear()
            tasks = [asyncio.ensure_future(bench.classify(upload)) for _ in range(20)]
            while len(bench.model.uploads) == 0:
                await asyncio.sleep(0.001)
            bench.model.gate.set()
            results = await asyncio.gather(*tasks)
            assert len(bench.model.uploads) == 1
            assert {result.known.prediction.indices for result in results} == {(upload[0],)}
            assert [result.source for result in results].count(Source.MISS) == 1

    run(scenario)


def test_failures_are_not_remembered() -> None:
    """The same bad image is looked at again each time."""

    async def scenario() -> None:
        bench = Bench(shelf=(shelf := Shelf()))
        for _ in range(2):
            with pytest.raises(BadImage):
                await bench.classify(b"!")
        assert len(bench.model.uploads) == 2
        assert not shelf.known
        assert bench.board.totals()["entries"] == 0

    run(scenario)


def test_a_fresh_answer_is_computed_and_remembered() -> None:
    """It replaces the old one, here and in the shared tier."""

    async def scenario() -> None:
        shelf = Shelf()
        bench = Bench(shelf=shelf)
        await bench.classify(b"a")
        shelf.known.clear()
        assert (await bench.classify(b"a", is_fresh=True)).source is Source.MISS
        assert len(bench.model.uploads) == 2
        assert len(shelf.known) == 1
        assert (await bench.classify(b"a")).source is Source.HIT

    run(scenario)


def test_who_wants_a_fresh_answer_does_not_join_one_who_may_find_an_old_one() -> None:
    """Two flights, since the first looks into the shared tier."""

    async def scenario() -> None:
        shelf = Shelf()
        await Bench(shelf=shelf).classify(b"a")
        bench = Bench(shelf=shelf)
        tasks = [asyncio.ensure_future(bench.classify(b"a", is_fresh=is_fresh)) for is_fresh in (False, True)]
        old, fresh = await asyncio.gather(*tasks)
        assert (old.source, fresh.source) == (Source.HIT, Source.MISS)

    run(scenario)


def test_who_wants_any_answer_joins_one_who_wants_a_fresh_one() -> None:
    """The other way round nothing is lost: one inference."""

    async def scenario() -> None:
        bench = Bench(shelf=Shelf())
        bench.model.gate.clear()
        tasks = [asyncio.ensure_future(bench.classify(b"a", is_fresh=is_fresh)) for is_fresh in (True, False, True)]
        await asyncio.sleep(0.01)
        bench.model.gate.set()
        sources = [result.source for result in await asyncio.gather(*tasks)]
        assert sources == [Source.MISS, Source.COALESCED, Source.COALESCED]
        assert len(bench.model.uploads) == 1

    run(scenario)


def test_what_was_begun_before_a_clear_is_not_remembered() -> None:
    """Neither here nor in the shared tier; whether it was computed or found there."""

    async def scenario() -> None:
        shelf = Shelf()
        bench = Bench(shelf=shelf)
        bench.model.gate.clear()
        task = asyncio.ensure_future(bench.classify(b"a"))
        await asyncio.sleep(0.01)
        bench.board.clear()
        bench.model.gate.set()
        await task
        assert not shelf.known
        assert await bench.sources(b"a", b"a") == ["miss", "hit"]

        other = Bench(shelf=shelf)
        shelf.gate.clear()
        task = asyncio.ensure_future(other.classify(b"a"))
        await asyncio.sleep(0.01)
        other.board.clear()
        shelf.known.clear()
        shelf.gate.set()
        assert (await task).source is Source.HIT
        assert await other.sources(b"a") == ["miss"]

    run(scenario)


def test_the_shared_tier_answers_another_process() -> None:
    """A hit there is a hit, for all who wait; then it is known here."""

    async def scenario() -> None:
        shelf = Shelf()
        await Bench(shelf=shelf).classify(b"a")
        other = Bench(shelf=shelf)
        results = await asyncio.gather(other.classify(b"a"), other.classify(b"a"))
        assert [result.source for result in results] == [Source.HIT] * 2
        shelf.known.clear()
        assert await other.sources(b"a") == ["hit"]
        assert other.model.uploads == []
        assert other.counts() == (2, 0, 1)

    run(scenario)


def test_another_identity_is_another_key() -> None:
    """A server with another model, revision, dtype or decode mode finds nothing of this one's."""

    async def scenario() -> None:
        shelf = Shelf()
        await Bench(shelf=shelf).classify(b"aa")
        assert await Bench(shelf=shelf, identity="model ").sources(b"aa") == ["miss"]
        # The identity's end and the upload's start can't be mistaken for each other.
        assert await Bench(shelf=shelf, identity="modela").sources(b"a") == ["miss"]

    run(scenario)


def test_before_the_identity_is_known() -> None:
    """NotReady, and all is well afterwards."""

    async def scenario() -> None:
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

    run(scenario)


def test_without_a_cache_every_upload_is_computed() -> None:
    """Neither remembered nor coalesced."""

    async def scenario() -> None:
        bench = Bench(size=0)
        bench.model.gate.clear()
        tasks = [asyncio.ensure_future(bench.classify(b"a")) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        bench.model.gate.set()
        assert [result.source for result in await asyncio.gather(*tasks)] == [Source.MISS] * 3
        assert len(bench.model.uploads) == 3

    run(scenario)


def test_what_is_known_is_the_whole_top_20() -> None:
    """Packed and unpacked, to the last bit of what a worker's answer carries."""
    top = Prediction(tuple(range(100, 100 + MAX_TOP_K)), tuple(1 / 2**k for k in range(1, MAX_TOP_K + 1)), 0.5)
    assert CachedPrediction(top).prediction == top


def test_a_long_wording_is_not_kept() -> None:
    """What an entry of the cache takes is bounded, whatever clients ask for."""
    known = CachedPrediction(Prediction((1,), (0.0,), 1.0))
    known.add_rendered("short", b"x" * 512)
    known.add_rendered("long", b"x" * 513)
    assert list(known.rendered) == ["short"]
