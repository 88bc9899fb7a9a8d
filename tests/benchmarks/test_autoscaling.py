"""The closed loop: what it reads from the manifests, what its controller decides, and the loop in its short form."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import autoscaling, rerun
from benchmarks.autoscaling_parts import manifests, prometheus, proxy
from benchmarks.autoscaling_parts.controller import Autoscaler, Workload, proposal_for_pods, proposal_for_total
from benchmarks.autoscaling_parts.deployment import Pod, due
from benchmarks.autoscaling_parts.loop import free_ports
from benchmarks.autoscaling_parts.manifests import Fallback, Metric, Policy, Rules, Scaling, Template
from benchmarks.autoscaling_parts.prometheus import Metrics
from benchmarks.harness import results
from tests.support.server import wait_until

SHORT = next(planned.quick for planned in rerun.PLAN if planned.name == "autoscaling")
LATE_MS = 100
NO_LIMIT = Rules(0, "Max", (Policy("Pods", 100, 1),))


def scaling(**changed: Any) -> Scaling:
    values: dict[str, Any] = {"min_replicas": 1, "max_replicas": 100, "metrics": (), "up": NO_LIMIT, "down": NO_LIMIT}
    return Scaling(**values | changed)


def pods(*names: str) -> Workload:
    return Workload(len(names), frozenset(names))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the manifests."""
    return shutil.copytree(manifests.FOLDER, tmp_path / "kubernetes")


def change(file: Path, text: str, by: str) -> None:
    content = file.read_text()
    assert text in content
    file.write_text(content.replace(text, by))


def test_the_scaled_object_is_read(folder: Path) -> None:
    """Queries, thresholds, bounds, behaviour and fallback are those of the file, whatever they are."""
    file = folder / "overlays/keda/scaledobject.yaml"
    spec = yaml.safe_load(file.read_text())["spec"]
    read = manifests.keda(folder=folder)
    assert [metric.query for metric in read.metrics] == [each["metadata"]["query"] for each in spec["triggers"]]
    assert (read.min_replicas, read.max_replicas) == (spec["minReplicaCount"], spec["maxReplicaCount"])
    assert read.fallback == Fallback(3, 4, "currentReplicasIfHigher")
    assert not any(metric.ignores_null for metric in read.metrics)
    change(file, 'threshold: "32"', 'threshold: "7"')
    change(file, "stabilizationWindowSeconds: 300", "stabilizationWindowSeconds: 77")
    changed = manifests.keda(folder=folder)
    assert (changed.metrics[0].target, changed.down.window_s) == (7, 77)


def test_the_autoscaler_of_kubernetes_is_read(folder: Path) -> None:
    """Its behaviour and target are those of KEDA; its query is that of prometheus-adapter's rule."""
    read, other = manifests.hpa(folder=folder), manifests.keda(folder=folder)
    assert (read.up, read.down, read.metrics[0].target) == (other.up, other.down, other.metrics[0].target)
    (metric,) = read.metrics
    assert metric.query == 'sum by (pod) (inference_slots{state!="free",namespace="default"})'
    assert metric.is_per_pod


def test_a_speed_shortens_what_the_autoscaler_counts() -> None:
    """Windows, periods and the ranges of queries; no figure."""
    real, fast = manifests.keda(), manifests.keda(speed=6)
    assert (real.down.window_s, fast.down.window_s) == (300, 50)
    assert [policy.period_s for policy in fast.up.policies] == [policy.period_s / 6 for policy in real.up.policies]
    assert "[1m]" in real.metrics[1].query
    assert "[10000ms]" in fast.metrics[1].query
    assert [metric.target for metric in fast.metrics] == [metric.target for metric in real.metrics]


@pytest.mark.parametrize(
    ("name", "text", "by"),
    [
        pytest.param("overlays/keda/scaledobject.yaml", "type: prometheus", "type: cron", id="another trigger"),
        pytest.param("overlays/keda/scaledobject.yaml", "metricType: AverageValue", "metricType: Value", id="a value"),
        pytest.param("overlays/keda/scaledobject.yaml", "ignoreNullValues:", "ignoreNaN:", id="another option"),
        pytest.param("overlays/keda/scaledobject.yaml", "selectPolicy: Max", "tolerance: 0.5", id="another rule"),
        pytest.param("overlays/hpa/horizontalpodautoscaler.yaml", "Pods\n      p", "Object\n      p", id="type"),
        pytest.param("overlays/hpa/prometheus-adapter.yaml", "as: vit_api", "as: other", id="no rule for the metric"),
        pytest.param("overlays/hpa/prometheus-adapter.yaml", "<<.GroupBy>>", "<<.Other>>", id="another template"),
        pytest.param("base/deployment.yaml", "maxSurge: 1", "maxSurge: 25%", id="a share of the replicas"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused(folder: Path, name: str, text: str, by: str) -> None:
    """A manifest is never followed in part."""
    change(folder / name, text, by)
    with pytest.raises(ValueError, match=r"supported|no rule"):
        for read in (manifests.keda, manifests.hpa):
            read(folder=folder)
        manifests.template(folder)


@pytest.mark.parametrize(
    ("total", "replicas", "expected"),
    [
        pytest.param(64, 2, 2, id="on target"),
        pytest.param(70, 2, 2, id="within the tolerance"),
        pytest.param(58, 2, 2, id="within the tolerance, below"),
        pytest.param(72, 2, 3, id="beyond it"),
        pytest.param(57, 10, 2, id="much less"),
        pytest.param(0, 2, 0, id="nothing"),
        pytest.param(1000, 2, 32, id="much more"),
    ],
)
def test_replicas_for_an_external_metric(total: float, replicas: int, expected: int) -> None:
    """The total by the target, rounded up, unless the ratio is within 10% of 1."""
    assert proposal_for_total(total, 32, pods(*"abcdefghij"[:replicas])) == expected


@pytest.mark.parametrize(
    ("values", "workload", "expected"),
    [
        pytest.param({"a": 32, "b": 32}, pods("a", "b"), 2, id="on target"),
        pytest.param({"a": 64, "b": 64}, pods("a", "b"), 4, id="twice as much"),
        pytest.param({"a": 64}, pods("a", "b"), 2, id="a missing pod counts as idle"),
        pytest.param({"a": 8}, pods("a", "b"), 2, id="or as on target, where fewer are needed"),
        pytest.param({"a": 8, "b": 8}, pods("a", "b"), 1, id="fewer"),
        pytest.param({"a": 64, "gone": 640}, pods("a"), 2, id="a pod that is terminating does not count"),
        pytest.param({"a": 64}, Workload(2, frozenset("a"), frozenset("b")), 2, id="one that starts will help"),
        pytest.param({"a": 16}, Workload(2, frozenset("a"), frozenset("b")), 1, id="but does not hold up a decrease"),
        pytest.param({}, pods("a"), None, id="no value"),
    ],
)
def test_replicas_for_a_metric_of_pods(values: Mapping[str, float], workload: Workload, expected: int | None) -> None:
    assert proposal_for_pods(values, 32, workload) == expected


def test_the_largest_proposal_counts() -> None:
    assert Autoscaler(scaling(), 0, 2).decide(1, 2, [3, 5, 1]) == 5


def test_without_a_metric_replicas_are_only_added() -> None:
    """As long as one of several metrics has no value, nothing is removed; without any, nothing changes."""
    autoscaler = Autoscaler(scaling(), 0, 4)
    assert autoscaler.decide(1, 4, [2, None]) == 4
    assert autoscaler.decide(2, 4, [None, None]) == 4
    assert autoscaler.decide(3, 4, [6, None]) == 6


def test_the_bounds_hold() -> None:
    bounded = scaling(min_replicas=2, max_replicas=10)
    assert Autoscaler(bounded, 0, 2).decide(1, 2, [50]) == 10
    assert Autoscaler(bounded, 0, 5).decide(1, 5, [0]) == 2


def test_replicas_are_removed_after_the_window() -> None:
    """The highest recommendation of the window counts, and the first is the number at the start."""
    autoscaler = Autoscaler(scaling(down=Rules(300, "Max", NO_LIMIT.policies)), 0, 6)
    assert [autoscaler.decide(at, 6, [2]) for at in (15, 150, 299)] == [6, 6, 6]
    assert autoscaler.decide(300, 6, [3]) == 3
    assert autoscaler.decide(315, 3, [2]) == 3


def test_a_window_delays_an_increase_too() -> None:
    autoscaler = Autoscaler(scaling(up=Rules(60, "Max", NO_LIMIT.policies)), 0, 2)
    assert [autoscaler.decide(at, 2, [proposal]) for at, proposal in ((15, 8), (30, 5), (61, 8))] == [2, 2, 5]


def test_the_behaviour_of_the_manifest() -> None:
    """From 2 replicas by 4 within 30 s, then to twice as many; down after 300 s, by half within a minute."""
    autoscaler = Autoscaler(manifests.keda(), 0, 2)
    replicas, asked = 2, []
    for at in range(15, 76, 15):
        replicas = autoscaler.decide(at, replicas, [20, 0])
        asked.append(replicas)
    assert asked == [6, 6, 10, 10, 10]
    asked = []
    for at in range(90, 556, 15):
        replicas = autoscaler.decide(at, replicas, [1, 0])
        asked.append((at, replicas))
    assert [each for before, each in pairwise(asked) if each[1] != before[1]] == [
        (375, 5),
        (435, 2),
    ]


@pytest.mark.parametrize(("select", "expected"), [("Max", 6), ("Min", 3), ("Disabled", 2)])
def test_which_policy_counts(select: str, expected: int) -> None:
    rules = Rules(0, select, (Policy("Percent", 50, 30), Policy("Pods", 4, 30)))
    assert Autoscaler(scaling(up=rules), 0, 2).decide(1, 2, [9]) == expected


TEMPLATE = Template(max_surge=1, max_unavailable=0, readiness_path="/health/ready", environment={})


def pod(name: str, revision: int = 1, *, is_ready: bool = True) -> Pod:
    return Pod(name, revision, is_ready)


@pytest.mark.parametrize(
    ("running", "replicas", "revision", "expected"),
    [
        pytest.param([], 2, 1, (2, []), id="start"),
        pytest.param([pod("a"), pod("b")], 2, 1, (0, []), id="nothing to do"),
        pytest.param([pod("a"), pod("b")], 6, 1, (4, []), id="more"),
        pytest.param([pod("a"), pod("b"), pod("c")], 1, 1, (0, ["c", "b"]), id="fewer, the youngest first"),
        pytest.param([pod("a", is_ready=False), pod("b")], 1, 1, (0, ["a"]), id="those that are not ready first"),
        pytest.param([pod("a"), pod("b")], 2, 2, (1, []), id="an update starts one first"),
        pytest.param([pod("a"), pod("b"), pod("c", 2, is_ready=False)], 2, 2, (0, []), id="and waits for it"),
        pytest.param([pod("a"), pod("b"), pod("c", 2)], 2, 2, (0, ["a"]), id="before it stops one"),
        pytest.param([pod("b"), pod("c", 2)], 2, 2, (1, []), id="and so on"),
        pytest.param([pod("a"), pod("b"), pod("c", 2)], 4, 2, (2, []), id="more, during an update"),
        pytest.param([pod("a"), pod("b"), pod("c"), pod("d", 2)], 2, 2, (0, ["a", "b"]), id="fewer, during an update"),
        pytest.param([pod("a", is_ready=False), pod("b")], 2, 2, (1, ["a"]), id="an old one that is not ready"),
    ],
)
def test_what_a_deployment_starts_and_stops(
    running: list[Pod], replicas: int, revision: int, expected: tuple[int, list[str]]
) -> None:
    """Never fewer ready pods than replicas, and never more than one pod besides during an update."""
    assert due(running, replicas, revision, TEMPLATE) == expected


def test_changes_of_direction() -> None:
    assert autoscaling.changes_of_direction([2, 2, 6, 10, 10, 5, 2]) == 1
    assert autoscaling.changes_of_direction([2, 6, 4, 6, 2]) == 3
    assert autoscaling.changes_of_direction([2, 2]) == 0


def test_ports_for_replicas() -> None:
    """They are free, different, and none that an outgoing connection may be assigned meanwhile."""
    found = free_ports(40)
    assert len(set(found)) == 40
    assert max(found) < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


needs_programs = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("haproxy")), reason="needs Debian's packages prometheus, haproxy"
)

needs_a_quiet_machine = pytest.mark.skipif(
    os.environ.get("AUTOSCALING_TESTS") != "all", reason="needs a machine of its own: `make autoscaling-test` runs it"
)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[prometheus.Prometheus]:
    """Run a real Prometheus that has nothing to scrape."""
    with prometheus.running(tmp_path, 1) as running:
        yield running


@needs_programs
def test_a_metric_that_fails_falls_back(source: prometheus.Prometheus) -> None:
    """No series and a refused query are failures; after three of them KEDA's fallback counts."""
    null = Metric("null", "nothing_of_this_name", 32)
    wrong = Metric("wrong", "sum(", 1)
    metrics = Metrics(scaling(metrics=(null, wrong), fallback=Fallback(3, 4, "currentReplicasIfHigher")), source)
    read = [metrics.proposals(pods("a", "b")) for _ in range(4)]
    assert [proposals for proposals, _ in read] == [[None, None]] * 3 + [[4, 4]]
    assert read[-1][1] == {"null": None, "wrong": None}
    assert metrics.proposals(pods(*"abcdef"))[0] == [6, 6]


@needs_programs
def test_values_of_a_metric(source: prometheus.Prometheus) -> None:
    """A value counts; where null values are ignored, no series is zero; several series are a failure."""
    read = (
        Metric("value", "vector(96)", 32),
        Metric("ignored", "nothing_of_this_name", 32, ignores_null=True),
        Metric("several", 'label_replace(vector(1), "a", "b", "", "") or vector(2)', 32),
    )
    assert Metrics(scaling(metrics=read), source).proposals(pods("a"))[0] == [3, 0, None]


@needs_programs
def test_prometheus_finds_the_replicas(source: prometheus.Prometheus) -> None:
    """Those of the file, with the labels by which the autoscalers' queries find them; soon, and no others."""
    source.scrape({"vit-api-1": 1})
    wait_until(lambda: bool(source.query("up")))
    ((labels, value),) = source.query("up") or ()
    assert (labels["job"], labels["pod"], labels["namespace"], value) == ("vit-api", "vit-api-1", "default", 0)
    source.scrape({})
    wait_until(lambda: source.query("up") == [])


class Ready(BaseHTTPRequestHandler):
    """A replica that is ready."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@needs_programs
def test_haproxy_sends_requests_to_ports_that_it_has_not_checked(tmp_path: Path) -> None:
    """So a load must wait for the checks of all: only then are the others down."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Ready) as replica:
        threading.Thread(target=replica.serve_forever, daemon=True).start()
        with proxy.running(tmp_path, (replica.server_port, *free_ports(20))) as in_front:
            assert in_front.up() > 1
            wait_until(lambda: in_front.up() == 1)
            statuses = Counter(row["status"] for name, row in in_front.statistics().items() if name != "BACKEND")
            assert statuses == {"UP": 1, "DOWN": 20}
        replica.shutdown()


@needs_programs
@needs_a_quiet_machine
@pytest.mark.parametrize("kind", ["keda", "hpa"])
def test_replicas_follow_the_load_and_no_request_is_lost(tmp_path: Path, kind: str) -> None:
    """The short form: 30 times as fast, up and down once, and a rolling update while the load is high."""
    file = tmp_path / "autoscaling.json"
    autoscaling.main([*SHORT, "--kind", kind, "--out", str(file)])
    report = json.loads(file.read_text())
    result = report["result"]
    assert (result["lost"], set(result["outcomes"])) == (0, {"ok"}), result["outcomes"]
    assert (result["crashes"], result["failed_stops"]) == ([], [])
    assert result["requests"] > 2000
    assert result["course"]["rolled_out_s"] is not None
    replicas = result["replicas"]
    assert replicas["most"] > replicas["before"] >= manifests.keda().min_replicas
    autoscaling.plot(report, tmp_path)
    assert "</svg>" in (tmp_path / "autoscaling.svg").read_text()
    assert "| lost | 0 |" in autoscaling.table(report)
    if result["sent_late_ms"]["p99"] > LATE_MS:
        pytest.skip("the machine is too busy: requests that are sent late come in bursts, and replicas follow those")
    # How often they change their direction is held in the long run: 30 times as fast, a pause of 0.5 s is one of 15 s.
    assert replicas["after"] == replicas["before"]


def test_the_long_run_lost_nothing_and_changed_its_direction_at_most_twice() -> None:
    """The committed result is of a run through load x 3, a rolling update, and back."""
    result = results.read("autoscaling")["result"]
    assert result["lost"] == 0
    assert result["requests"] >= 100_000
    assert result["course"]["rolled_out_s"] is not None
    assert result["replicas"]["changes_of_direction"] <= 2
