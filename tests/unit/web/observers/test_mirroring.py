"""How a mirror's answers are compared, counted and logged; the tests act as the workers of both versions."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.support.exchanges import checkpoint_of, exchange_of, scores_of
from tests.support.mirror_bench import MirrorBench, mirroring
from tests.support.waiting import until
from vit_api import metrics
from vit_api.errors import BadRequest
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import AnswerRecord, Prediction, Status
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source
from vit_api.web.core.deployment_choice import Chosen
from vit_api.web.observers import mirroring as mirroring_module
from vit_api.web.observers.mirroring import ByMirrored, Mirroring, ShadowCounts, Side, compare

_LABELS = [str(number) for number in range(256)]


class _Log:
    """Keeps what would be logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def log_mirrored(self, *line: Any) -> None:
        self.lines.append(line)


class _Fixture:
    def __init__(self, bench: MirrorBench, *, has_log: bool = False) -> None:
        self.bench = bench
        checkpoint = checkpoint_of(*_LABELS)
        self.board = MetricsBoard(["http-0"], metrics.MIRROR)
        counts = ShadowCounts(self.board.metrics_writer("http-0"))
        self.log = _Log()
        self.observer = Mirroring(
            bench.mirror,
            Side(0, "1", checkpoint),
            Side(1, "2", checkpoint),
            counts,
            self.log if has_log else None,  # type: ignore[arg-type]
        )

    async def ask(self, value: int, upload: bytes | None = None) -> ClassifierResult:
        """Have an image answered; return the result before it is sent."""
        answer = await self.bench.answer(bytes([value]))
        return ClassifierResult(CachedPrediction(answer.prediction), Source.MISS, answer, upload=upload)

    @property
    def outcomes(self) -> Counter[str]:
        totals = self.board.totals(metrics.SHADOW)
        return Counter({outcome: int(number) for (outcome,), (number,) in totals.items()})


@pytest.mark.parametrize(
    ("labels", "scores", "agrees", "difference"),
    [
        pytest.param(("cat", "dog"), (0.7, 0.3), True, 0.2, id="less sure"),
        pytest.param(("dog", "cat"), (0.3, 0.7), True, 0.2, id="in another order"),
        pytest.param(("cat", "dog"), (0.4, 0.6), False, 0.5, id="another class"),
        pytest.param(("tiger", "dog"), (0.9, 0.1), False, 0.9, id="no such class"),
    ],
)
def test_classes_are_compared_by_name(
    labels: tuple[str, ...], scores: tuple[float, ...], agrees: bool, difference: float
) -> None:
    """The difference is that of the answered class."""
    side = Side(1, "2", checkpoint_of(*labels))
    mirrored = compare("cat", 0.9, "1", scores_of(*scores), side)
    assert (mirrored.agrees, mirrored.difference) == (agrees, pytest.approx(difference))
    assert (mirrored.version, mirrored.label, mirrored.score) == ("1", "cat", 0.9)


def test_each_side_has_its_own_kind_of_probability() -> None:
    """A multi-label model's is a sigmoid."""
    side = Side(1, "2", checkpoint_of("cat", "dog", has_sigmoid=True))
    assert compare("cat", 0.9, "1", scores_of(0.8, 0.7, sigmoid=True), side).difference == pytest.approx(0.1)


@pytest.mark.anyio
async def test_nothing_is_sent_before_the_response_has_left() -> None:
    """The server's event loop writes it after the callback that ends the request."""
    async with mirroring(MirrorBench()) as bench:
        fixture = _Fixture(bench)
        fixture.observer.observe(exchange_of(await fixture.ask(7), BadRequest("no image")))
        assert bench.mirrored.table.count_waiting() == 0
        bench.mirrored.answer(await bench.claim())
        await until(lambda: fixture.outcomes["agree"] == 1)
        assert sum(fixture.outcomes.values()) == 1
        assert sum(fixture.board.totals(metrics.SHADOW_DIFFERENCE)[()][:-1]) == 1


@pytest.mark.anyio
async def test_what_the_mirror_says_is_counted_by_outcome() -> None:
    """A failure is none of the answered version; a stopped wait counts as skipped."""
    async with mirroring(MirrorBench()) as bench:
        fixture = _Fixture(bench)
        fixture.observer.observe(exchange_of(*[await fixture.ask(value) for value in range(3)]))
        other, failed, skipped = [await bench.claim() for _ in range(3)]
        record = AnswerRecord(other.slot, other.generation, Status.OK, Prediction((99,), (0.0,), 0.5))
        bench.mirrored.answers.write([record.pack()])
        bench.mirrored.answer(failed, Status.FAILED)
        bench.mirrored.answer(skipped, Status.SKIPPED)
        await until(lambda: sum(fixture.outcomes.values()) == 3)
        assert fixture.outcomes == Counter(differ=1, failed=1, skipped=1)


@pytest.mark.anyio
async def test_the_log_gets_the_mirrors_answer() -> None:
    """With the request's id and upload, so that both lines can be found."""
    async with mirroring(MirrorBench()) as bench:
        fixture = _Fixture(bench, has_log=True)
        fixture.observer.observe(exchange_of(await fixture.ask(7, b"file")))
        bench.mirrored.answer(await bench.claim())
        await until(lambda: bool(fixture.log.lines))
        ((request_id, result, number, mirrored),) = fixture.log.lines
        assert (request_id, result.upload, number, mirrored.label) == ("an-id", b"file", 1, "7")


@pytest.mark.anyio
async def test_uploads_that_are_kept_for_the_log_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond, images are skipped, and their slots freed at once; one upload always has room."""
    monkeypatch.setattr(mirroring_module, "MAX_UPLOAD_BYTES", 10)
    async with mirroring(MirrorBench()) as bench:
        fixture = _Fixture(bench, has_log=True)
        for size in (20, 1):
            fixture.observer.observe(exchange_of(await fixture.ask(size, bytes(size))))
        await until(lambda: bench.skipped == 1)
        bench.mirrored.answer(await bench.claim())
        await until(lambda: len(fixture.log.lines) == 1)
        fixture.observer.observe(exchange_of(await fixture.ask(5, bytes(10))))
        bench.mirrored.answer(await bench.claim())
        await until(lambda: len(fixture.log.lines) == 2)


@pytest.mark.anyio
async def test_only_what_was_computed_by_a_version_with_a_mirror() -> None:
    """Neither hits nor other deployments' images, and nothing without a choice."""
    async with mirroring(MirrorBench()) as bench:
        fixture = _Fixture(bench)
        observer = ByMirrored({0: fixture.observer})
        result = await fixture.ask(7)
        for chosen in (None, Chosen(1, "digits", "2", place=1)):
            exchange = exchange_of(result)
            exchange.request.deployment = chosen
            observer.observe(exchange)
        hit = exchange_of(ClassifierResult(result.cached, Source.HIT))
        hit.request.deployment = Chosen(0, "digits", "1")
        observer.observe(hit)
        await asyncio.sleep(0)
        assert bench.mirrored.table.count_waiting() == 0
        mine = exchange_of(result)
        mine.request.deployment = Chosen(0, "digits", "1")
        observer.observe(mine)
        bench.mirrored.answer(await bench.claim())
        await until(lambda: fixture.outcomes["agree"] == 1)
