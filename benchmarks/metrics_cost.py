"""CPU time of the metrics of a cache hit.

    python -m benchmarks.metrics_cost

Counts a hit as an HTTP process does, against four counts in prometheus_client's multiprocess mode, which keeps a
memory-mapped file for each process, and what counting the predictions themselves adds. All run in one process and take
turns; medians.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness import command_line, results, tables
from vit_api import metrics
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.ipc.metrics_board import MetricsBoard
from vit_api.ipc.records import Prediction
from vit_api.web.core.classifier_result import CachedPrediction, ClassifierResult, Source
from vit_api.web.observers.exchange import Exchange
from vit_api.web.observers.prediction_metrics import PredictionMetrics
from vit_api.web.observers.request_metrics import RequestMetrics
from vit_api.web.requests import Request

_LIMIT_US = 5.0
_PREDICTIONS_LIMIT_US = 1.0


def _ours() -> Callable[[], None]:
    """Return the function that an HTTP process calls for each hit."""
    board = MetricsBoard(["http-0", "http-1", "worker-0"], metrics.COUNTED)
    observer = RequestMetrics(board.metrics_writer("http-1"))
    scope = {"method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    request = Request(scope, b"id", arrived_at=0.0, timeout_s=30.0, endpoint="/predict")
    hit = ClassifierResult(CachedPrediction(Prediction((1,), (0.0,), 1.0)), Source.HIT)

    def count() -> None:
        request.timeline.arrived_at = time.monotonic()
        observer.observe(Exchange(request, 200, time.monotonic(), (hit,)))

    return count


def _predictions() -> Callable[[], None]:
    """Return the function that an HTTP process calls besides, to count what the model says."""
    checkpoint = load_checkpoint("digits")
    labels = metrics.class_labels(checkpoint.labels)
    board = MetricsBoard(["http-0"], metrics.counted_for(labels, has_thresholds=False))
    observer = PredictionMetrics(board.metrics_writer("http-0"), checkpoint)
    scope = {"method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    request = Request(scope, b"id", arrived_at=0.0, timeout_s=30.0, endpoint="/predict")
    hit = ClassifierResult(CachedPrediction(Prediction((1,), (0.0,), 1.0)), Source.HIT)
    exchange = Exchange(request, 200, 0.0, (hit,))
    return lambda: observer.observe(exchange)


def _theirs() -> Callable[[], None]:
    """Return the same counts in prometheus_client, which reads its storage from the environment when imported."""
    from prometheus_client import Counter, Histogram

    requests = Counter("requests", "", ["endpoint", "status"]).labels("/predict", "200")
    durations = Histogram("seconds", "", ["endpoint"], buckets=metrics.TIMES_S).labels("/predict")
    received, hits = Counter("bytes", ""), Counter("hits", "")

    def count() -> None:
        began_at = time.monotonic()
        requests.inc()
        durations.observe(time.monotonic() - began_at)
        received.inc(700)
        hits.inc()

    return count


def measure(rounds: int, counts: int) -> dict[str, float]:
    """Return microseconds per hit, by implementation."""
    ways = {"ours": _ours(), "predictions": _predictions(), "prometheus_client": _theirs()}
    costs_us: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, count in ways.items():
            began_at = time.perf_counter()
            for _ in range(counts):
                count()
            costs_us[name].append((time.perf_counter() - began_at) / counts * 1e6)
    return {name: round(statistics.median(costs), 2) for name, costs in costs_us.items()}


def table(report: dict[str, Any]) -> str:
    """Return the table of a result."""
    names = {
        "ours": "this server, shared memory",
        "predictions": "this server, labels and confidence of predictions",
        "prometheus_client": "prometheus_client, memory-mapped files",
    }
    rows = [(names[name], f"{cost_us:.1f} us") for name, cost_us in report["us_per_hit"].items()]
    return tables.markdown(("metrics kept by", "CPU per cache hit"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("metrics_cost", __doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--counts", type=int, default=50_000, help="hits per round (default: %(default)s)")
    options = command_line.parse(parser, arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        result = measure(options.rounds, options.counts)
    print(
        f"{result['ours']} us per hit (limit: {_LIMIT_US:g}), {result['predictions']} us for the predictions (limit: "
        f"{_PREDICTIONS_LIMIT_US:g}), {result['prometheus_client']} us in prometheus_client"
    )
    results.write(options.out, {"us_per_hit": result})


if __name__ == "__main__":
    main()
