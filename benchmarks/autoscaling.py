"""A closed loop: the load triples, the replicas follow, and no request is lost.

    python -m benchmarks.autoscaling

Real servers behind HAProxy are scraped by a real Prometheus. A controller takes queries, targets and behaviour from the
manifest of KEDA or of the HPA, decides as Kubernetes does, and starts and stops servers as a Deployment does. An open
loop sends a steady load, and for some time three times as much. Meanwhile a rolling update replaces all replicas.

Durations that the autoscaler counts are divided by `--speed`: windows, periods, intervals and the ranges of queries.
Starts, probes, drain delays and requests take as long as they take.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.autoscaling_parts.loop import READ, Loop, running
from benchmarks.harness import command_line, machine, pictures, plots, results, tables
from vit_api.load import client_processes, summary
from vit_api.load.client import LoadPlan, Reply, Surge

TIMES = 3


@dataclass(frozen=True)
class Course:
    """What happens when, in seconds since the start of the load.

    Attributes:
        rate: Requests/s of the steady load.
        rise_s: When it becomes `TIMES` as much.
        roll_out_s: When the rolling update begins.
        fall_s: When the load becomes the steady one again.
        end_s: When it ends.
    """

    rate: float
    rise_s: float
    roll_out_s: float
    fall_s: float
    end_s: float


def measure(kind: str, speed: float, batch_s: float, course: Course) -> dict[str, Any]:
    """Run the loop; return what became of the requests and of the replicas."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(kind, speed, batch_s, Path(folder)) as loop,
        ThreadPoolExecutor(1) as client,
    ):
        load = _begin(loop, client, course)
        loop.run_until(lambda: loop.now_s() >= course.roll_out_s)
        loop.deployment.roll_out()
        loop.run_until(lambda: loop.deployment.is_rolled_out() or load.done())
        rolled_out_s = round(loop.now_s(), 1) if loop.deployment.is_rolled_out() else None
        loop.run_until(load.done)
        repeated = loop.proxy.repeated()
    return {
        "autoscaler": kind,
        "speed": speed,
        "batch_s": batch_s,
        "course": asdict(course) | {"rolled_out_s": rolled_out_s},
        **_of_requests(load.result(), course),
        "sent_again_by_haproxy": repeated,
        "replicas": _of_replicas(loop.described(), course),
        "crashes": loop.deployment.crashes,
        "failed_stops": loop.deployment.failed_stops,
        "samples": loop.described(),
    }


def _begin(loop: Loop, client: Executor, course: Course) -> Future[list[Reply]]:
    """Start the load through HAProxy, and begin the loop with its first reply."""
    is_loading = threading.Event()

    def load() -> list[Reply]:
        surge = Surge(course.rise_s, course.fall_s, TIMES)
        uploads = (pictures.small_png(),)
        url = loop.proxy.url + "/predict"
        plan = LoadPlan(url, uploads, rate=course.rate, surge=surge, warm_up_s=0, seconds=course.end_s)
        try:
            (shift,) = client_processes.run(plan, show=lambda replies: is_loading.set() if replies else None)
        finally:
            is_loading.set()
        return shift.replies

    future = client.submit(load)
    is_loading.wait()
    loop.begin()
    return future


def _of_requests(replies: Sequence[Reply], course: Course) -> dict[str, Any]:
    outcomes = Counter(reply.outcome for reply in replies)
    starts = {"before": 0.0, "surge": course.rise_s, "after": course.fall_s}
    ends = [*list(starts.values())[1:], math.inf]
    latencies = {}
    for (name, start_s), end_s in zip(starts.items(), ends, strict=True):
        found = [(r.done_s - r.intended_s) * 1000 for r in replies if start_s <= r.intended_s < end_s]
        latencies[name] = summary.percentiles(found)
    return {
        "requests": len(replies),
        "lost": len(replies) - outcomes["ok"],
        "outcomes": dict(outcomes),
        "latency_ms": latencies,
        "sent_late_ms": summary.percentiles([(r.sent_s - r.intended_s) * 1000 for r in replies]),
        "per_second": _per_second(replies),
    }


def _per_second(replies: Sequence[Reply]) -> list[int]:
    """Return the number of requests that were due in each second."""
    due = Counter(int(reply.intended_s) for reply in replies)
    return [due[second] for second in range(max(due) + 1)]


def _of_replicas(samples: Sequence[dict[str, Any]], course: Course) -> dict[str, Any]:
    """Return the numbers that the autoscaler asked for, and how fast it followed."""

    def at(second: float) -> int:
        return int([sample["replicas"] for sample in samples if sample["at_s"] <= second][-1])

    asked = [(sample["at_s"], sample["replicas"]) for sample in samples]
    surge = [sample for sample in samples if course.rise_s <= sample["at_s"] < course.fall_s]
    needed = at(course.fall_s)
    enough = [sample["at_s"] for sample in surge if sample["ready"] >= needed]
    return {
        "before": at(course.rise_s),
        "most": max(number for _, number in asked),
        "end_of_surge": needed,
        "after": asked[-1][1],
        "changes_of_direction": changes_of_direction([number for _, number in asked]),
        "ready_after_s": round(enough[0] - course.rise_s, 1) if enough else None,
    }


def changes_of_direction(numbers: Sequence[int]) -> int:
    """Return how often a series turns from growing to shrinking, or the other way round."""
    steps = [after > before for before, after in pairwise(numbers) if after != before]
    return sum(first != second for first, second in pairwise(steps))


def table(report: dict[str, Any]) -> str:
    """Return the table of a result."""
    result = report["result"]
    replicas, latency = result["replicas"], result["latency_ms"]
    rows = [
        ("requests through HAProxy", f"{result['requests']:,}"),
        ("lost", result["lost"]),
        ("requests/s: before, in the surge", f"{result['course']['rate']:g}, {result['course']['rate'] * TIMES:g}"),
        (
            "replicas: before, most, end of the surge, after",
            f"{replicas['before']}, {replicas['most']}, {replicas['end_of_surge']}, {replicas['after']}",
        ),
        ("changes of direction", replicas["changes_of_direction"]),
        ("enough replicas ready after", f"{replicas['ready_after_s']} s"),
        *(
            (f"latency {name.replace('_', ' ')}: p50, p99", f"{latency[name]['p50']} ms, {latency[name]['p99']} ms")
            for name in latency
        ),
        ("sent again by HAProxy", result["sent_again_by_haproxy"]),
    ]
    return tables.markdown((f"by the manifest of {result['autoscaler']}, {result['speed']:g} times as fast", ""), rows)


def plot(report: dict[str, Any], folder: Path) -> None:
    """Draw the load, the images in the servers and the replicas over the time."""
    result = report["result"]
    samples, course = result["samples"], result["course"]
    metrics = next(iter(samples[-1]["metrics"]))
    images = [(s["at_s"], s["metrics"][metrics]) for s in samples if s["metrics"].get(metrics) is not None]
    events = {"load x 3": "rise_s", "rolling update": "roll_out_s", "load / 3": "fall_s"}
    plots.panels(
        {
            "requests/s": {"": list(enumerate(result["per_second"]))},
            "images in the servers": {"": images},
            "replicas": {
                "asked for": [(sample["at_s"], sample["replicas"]) for sample in samples],
                "ready": [(sample["at_s"], sample["ready"]) for sample in samples],
            },
        },
        folder / "autoscaling.svg",
        x=f"seconds; the autoscaler's time passes {result['speed']:g} times as fast",
        events={name: course[key] for name, key in events.items()},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("autoscaling", __doc__)
    parser.add_argument("--kind", choices=READ, default="keda", help="the manifest (default: %(default)s)")
    parser.add_argument("--speed", type=float, default=4, help="divides the autoscaler's durations (default: 4)")
    parser.add_argument("--rate", type=float, default=60, help="requests/s of the steady load (default: 60)")
    parser.add_argument("--batch-s", type=float, default=0.4, help="seconds of a batch (default: 0.4)")
    for name, default in (("rise", 100.0), ("roll-out", 300.0), ("fall", 600.0), ("end", 900.0)):
        parser.add_argument(f"--{name}-s", type=float, default=default, help=f"see Course (default: {default:g})")
    options = command_line.parse(parser, arguments)
    described = machine.describe()
    course = Course(options.rate, options.rise_s, options.roll_out_s, options.fall_s, options.end_s)
    result = measure(options.kind, options.speed, options.batch_s, course)
    results.write(options.out, {"result": result}, described)
    print(table({"result": result}))


if __name__ == "__main__":
    main()
