"""The queue of the decision log, and its thread."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Sequence

import pytest

from tests.support.exchanges import checkpoint_of, exchange_of, miss, scores_of
from tests.support.server import wait_until
from vit_api import metrics
from vit_api.errors import BadRequest
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.labels.thresholds import Thresholds
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source, Tier
from vit_api.web.observers.decisions import log as decision_log
from vit_api.web.observers.decisions.decision import Answered, DecisionContext, DecisionRenderer, Mirrored
from vit_api.web.observers.decisions.log import DecisionCounters, DecisionLog
from vit_api.web.observers.decisions.url_sink import Refused

_UPLOAD = b"not really an image"
_THRESHOLDS = Thresholds({"bad": 0.5})


class _Sink:
    """Keeps what is written; fails while `error` is set, and waits while `gate` is not."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def write(self, lines: Sequence[bytes]) -> int:
        self.gate.wait(30)
        if self.error is not None:
            raise self.error
        self.lines += lines
        return len(lines)

    def reopen(self) -> None: ...

    def close(self) -> None: ...


class _Fixture:
    def __init__(self, *, sample: float = 1.0, stop_s: float = 10.0) -> None:
        self.board = MetricsBoard(["http-0"], metrics.COUNTED)
        writer = self.board.metrics_writer("http-0")
        dropped = [writer.counter(metrics.DECISIONS_DROPPED, cause) for cause in ("full", "refused", "stopped")]
        counters = DecisionCounters(
            writer.counter(metrics.DECISIONS_WRITTEN), writer.counter(metrics.DECISION_FAILURES), *dropped
        )
        self.sink = _Sink()
        renderer = DecisionRenderer(DecisionContext(checkpoint_of("good", "bad"), "abc", _THRESHOLDS))
        self.log = DecisionLog(self.sink, renderer.lines, counters, sample=sample, stop_s=stop_s)
        self.log.start()

    def count(self, metric: metrics.Metric, *values: str) -> float:
        return self.board.totals(metric)[values][0]


def test_a_decision_says_what_was_answered() -> None:
    """Hash, labels, scores, thresholds, flag and source; nothing else of the request."""
    fixture = _Fixture()
    fixture.log.observe(exchange_of(miss(scores_of(0.2, 0.8), _UPLOAD), BadRequest("no image")))
    fixture.log.close()
    (decision,) = map(json.loads, fixture.sink.lines)
    assert decision.pop("time").endswith("Z")
    assert decision == {
        "request_id": "an-id",
        "upload_sha256": hashlib.sha256(_UPLOAD).hexdigest(),
        "model": "a-model",
        "version": "abc",
        "predictions": [
            {"label": "bad", "score": 0.8, "flagged": True},
            {"label": "good", "score": 0.2, "flagged": False},
        ],
        "thresholds": _THRESHOLDS.digest,
        "flagged": True,
        "cache": "none",
    }
    assert fixture.count(metrics.DECISIONS_WRITTEN) == 1


@pytest.mark.parametrize(
    ("source", "tier", "cache"),
    [
        (Source.HIT, Tier.LOCAL, "local"),
        (Source.HIT, Tier.SHARED, "shared"),
        (Source.HIT, Tier.REDIS, "redis"),
        (Source.COALESCED, Tier.LOCAL, "coalesced"),
    ],
)
def test_a_decision_names_the_cache(source: Source, tier: Tier, cache: str) -> None:
    """The tier that had it, or that an identical upload was in flight."""
    fixture = _Fixture()
    result = ClassifierResult(CachedPrediction(scores_of(0.9, 0.1)), source, tier=tier, upload=_UPLOAD)
    fixture.log.observe(exchange_of(result))
    fixture.log.close()
    (decision,) = map(json.loads, fixture.sink.lines)
    assert (decision["cache"], decision["flagged"]) == (cache, False)


def test_a_full_queue_drops_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """While writing stands still, requests are not held; what was queued is written later, in order."""
    monkeypatch.setattr(decision_log, "MAX_QUEUED", 3)
    fixture = _Fixture()
    fixture.sink.gate.clear()
    for number in range(100):
        fixture.log.observe(exchange_of(miss(scores_of(0.9, 0.1)), request_id=b"%d" % number))
    fixture.sink.gate.set()
    fixture.log.close()
    dropped = fixture.count(metrics.DECISIONS_DROPPED, "full")
    assert dropped > 0
    assert len(fixture.sink.lines) + dropped == 100
    ids = [int(json.loads(line)["request_id"]) for line in fixture.sink.lines]
    assert ids == sorted(ids)


def test_uploads_in_the_queue_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bytes count, those of one upload with several frames once; a single long one still fits."""
    monkeypatch.setattr(decision_log, "MAX_QUEUED_BYTES", 1000)
    fixture = _Fixture()
    fixture.sink.gate.clear()
    long = bytes(2000)
    fixture.log.observe(exchange_of(miss(scores_of(0.9, 0.1), long), miss(scores_of(0.8, 0.2), long)))
    fixture.log.observe(exchange_of(miss(scores_of(0.9, 0.1), long)))
    assert fixture.count(metrics.DECISIONS_DROPPED, "full") == 1
    fixture.sink.gate.set()
    fixture.log.close()
    assert len(fixture.sink.lines) == 2


def test_what_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is lost while a disk is full for a moment; the log says it once."""
    fixture = _Fixture()
    fixture.sink.error = OSError(28, "No space left on device")
    with caplog.at_level(logging.ERROR):
        fixture.log.observe(exchange_of(miss(scores_of(0.9, 0.1))))
        wait_until(lambda: fixture.count(metrics.DECISION_FAILURES) >= 2)
    assert [record.message for record in caplog.records] == [
        "decisions can't be logged now: No space left on device; further errors are logged once a minute"
    ]
    fixture.sink.error = None
    wait_until(lambda: fixture.count(metrics.DECISIONS_WRITTEN) == 1)
    fixture.log.close()
    assert len(fixture.sink.lines) == 1


def test_what_is_refused_is_dropped() -> None:
    """It would be refused again, and hold up all others."""
    fixture = _Fixture()
    fixture.sink.error = Refused("the receiver answered 400")
    fixture.log.observe(exchange_of(miss(scores_of(0.9, 0.1))))
    wait_until(lambda: fixture.count(metrics.DECISIONS_DROPPED, "refused") == 1)
    fixture.sink.error = None
    fixture.log.observe(exchange_of(miss(scores_of(0.9, 0.1))))
    fixture.log.close()
    assert len(fixture.sink.lines) == 1


def test_stopping_is_bounded() -> None:
    """What a receiver does not take in time is counted, and the process ends."""
    fixture = _Fixture(stop_s=0.2)
    fixture.sink.gate.clear()
    for _ in range(5):
        fixture.log.observe(exchange_of(miss(scores_of(0.9, 0.1))))
    fixture.log.close()
    assert fixture.count(metrics.DECISIONS_DROPPED, "stopped") == 5
    fixture.sink.gate.set()


@pytest.mark.parametrize(("sample", "logged"), [(0.0, (0, 0)), (0.5, (350, 650)), (1.0, (1000, 1000))])
def test_a_sample_is_a_fraction_of_the_requests(sample: float, logged: tuple[int, int]) -> None:
    """By chance, request by request; the bounds are nine standard deviations wide."""
    fixture = _Fixture(sample=sample)
    for _ in range(1000):
        fixture.log.observe(exchange_of(miss(scores_of(0.9, 0.1))))
    fixture.log.close()
    assert logged[0] <= len(fixture.sink.lines) <= logged[1]


def test_an_event_is_a_cloud_event() -> None:
    """It has the required attributes of CloudEvents 1.0, and an id of its own."""
    renderer = DecisionRenderer(DecisionContext(checkpoint_of("good", "bad"), "abc", None))
    result = miss(scores_of(0.2, 0.8), _UPLOAD)
    events = [json.loads(event) for event in renderer.events(Answered(0.0, "an-id", [result, result], 0))]
    assert len({event["id"] for event in events}) == 2
    for event in events:
        assert event["specversion"] == "1.0"
        assert event["source"].startswith("urn:uuid:")
        assert (event["type"], event["time"]) == ("vit-api.decision.v1", "1970-01-01T00:00:00.000Z")
        assert event["data"]["flagged"] is None
        assert event["data"]["thresholds"] is None


_MIRRORED = Mirrored("1", "good", 0.912345678, agrees=False, difference=0.712345678)


def test_a_mirrors_line_says_what_the_client_was_told() -> None:
    """Beside its own predictions and flags."""
    fixture = _Fixture()
    fixture.log.log_mirrored("an-id", miss(scores_of(0.2, 0.8), _UPLOAD), 0, _MIRRORED)
    fixture.log.close()
    (line,) = map(json.loads, fixture.sink.lines)
    assert (line["request_id"], line["upload_sha256"]) == ("an-id", hashlib.sha256(_UPLOAD).hexdigest())
    assert (line["predictions"][0]["label"], line["flagged"]) == ("bad", True)
    assert line["shadow"] == {
        "answered_by": "1",
        "label": "good",
        "score": 0.912346,
        "outcome": "differ",
        "difference": 0.712346,
    }


def test_a_mirrors_event_has_a_type_of_its_own() -> None:
    """Receivers that know decisions only can tell it apart."""
    renderer = DecisionRenderer(DecisionContext(checkpoint_of("good", "bad"), "abc", _THRESHOLDS, "2"))
    answered = Answered(0.0, "an-id", [miss(scores_of(0.2, 0.8))], 0, 1)
    types = [json.loads(*renderer.events(one))["type"] for one in (answered, answered._replace(mirrored=_MIRRORED))]
    assert types == ["vit-api.decision.v1", "vit-api.shadow.v1"]
