"""Reads what an autoscaler and a rolling update do from the manifests in deploy/kubernetes.

A cluster's time may be sped up: all durations that the autoscaler counts are divided by the speed, and nothing else.
What is not supported is refused, so that no field of a manifest is silently ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import machine

FOLDER = machine.ROOT / "deploy" / "kubernetes"
NAMESPACE = "default"

_UNIT_S = {"s": 1, "m": 60, "h": 3600}
_TRIGGER_OPTIONS = {"serverAddress", "query", "threshold", "ignoreNullValues"}
# The defaults of autoscaling/v2, see https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/.
_DEFAULT_UP: dict[str, Any] = {
    "stabilizationWindowSeconds": 0,
    "policies": [
        {"type": "Percent", "value": 100, "periodSeconds": 15},
        {"type": "Pods", "value": 4, "periodSeconds": 15},
    ],
}
_DEFAULT_DOWN: dict[str, Any] = {
    "stabilizationWindowSeconds": 300,
    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
}


@dataclass(frozen=True)
class Policy:
    """How many replicas may be added or removed in a period: a number (`Pods`) or a share (`Percent`)."""

    kind: str
    value: int
    period_s: float


@dataclass(frozen=True)
class Rules:
    """One direction of the behaviour: its stabilisation window, its policies, and which of them counts."""

    window_s: float
    select: str
    policies: tuple[Policy, ...]


@dataclass(frozen=True)
class Metric:
    """A figure that the autoscaler follows.

    Attributes:
        name: Its name.
        query: Of Prometheus. With `is_per_pod` it returns a value for each `pod`, otherwise one for all.
        target: What each replica should have of it.
        is_per_pod: Whether it is a metric of pods, or an external one.
        ignores_null: Whether an empty result is zero instead of an error.
    """

    name: str
    query: str
    target: float
    is_per_pod: bool = False
    ignores_null: bool = False


@dataclass(frozen=True)
class Fallback:
    """KEDA's number of replicas after more than `failures` failures in a row."""

    failures: int
    replicas: int
    behavior: str


@dataclass(frozen=True)
class Scaling:
    """All that an autoscaler's manifest says."""

    min_replicas: int
    max_replicas: int
    metrics: tuple[Metric, ...]
    up: Rules
    down: Rules
    fallback: Fallback | None = None


@dataclass(frozen=True)
class Template:
    """What the Deployment's manifest says of its pods and of their update."""

    max_surge: int
    max_unavailable: int
    readiness_path: str
    environment: Mapping[str, str]


def keda(speed: float = 1, folder: Path = FOLDER) -> Scaling:
    """Return what the ScaledObject says.

    Raises:
        ValueError: It has something that is not supported here.
    """
    spec = _read(folder / "overlays/keda/scaledobject.yaml")["spec"]
    fallback = spec.get("fallback")
    config = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {})
    up, down = _behavior(config.get("behavior", {}), speed)
    return Scaling(
        min_replicas=spec["minReplicaCount"],
        max_replicas=spec["maxReplicaCount"],
        metrics=tuple(_trigger(trigger, speed) for trigger in spec["triggers"]),
        up=up,
        down=down,
        fallback=fallback
        and Fallback(fallback["failureThreshold"], fallback["replicas"], fallback.get("behavior", "static")),
    )


def hpa(speed: float = 1, folder: Path = FOLDER) -> Scaling:
    """Return what the HorizontalPodAutoscaler says, with its metric's query by the rule of prometheus-adapter.

    Raises:
        ValueError: It has something that is not supported here.
    """
    spec = _read(folder / "overlays/hpa/horizontalpodautoscaler.yaml")["spec"]
    rules = _read(folder / "overlays/hpa/prometheus-adapter.yaml")["rules"]["custom"]
    queries = {rule["name"]["as"]: _adapter_query(rule) for rule in rules}
    up, down = _behavior(spec.get("behavior", {}), speed)
    return Scaling(
        min_replicas=spec["minReplicas"],
        max_replicas=spec["maxReplicas"],
        metrics=tuple(_pods_metric(metric, queries, speed) for metric in spec["metrics"]),
        up=up,
        down=down,
    )


def template(folder: Path = FOLDER) -> Template:
    """Return what the base's Deployment says.

    Raises:
        ValueError: Its strategy is another than a rolling update by numbers of replicas.
    """
    spec = _read(folder / "base/deployment.yaml")["spec"]
    limits = spec["strategy"].get("rollingUpdate", {})
    surge, unavailable = limits.get("maxSurge"), limits.get("maxUnavailable")
    if not isinstance(surge, int) or not isinstance(unavailable, int):
        raise ValueError(f"Only numbers are supported for maxSurge and maxUnavailable. Got {limits}.")
    (container,) = spec["template"]["spec"]["containers"]
    return Template(
        max_surge=surge,
        max_unavailable=unavailable,
        readiness_path=container["readinessProbe"]["httpGet"]["path"],
        environment={variable["name"]: variable["value"] for variable in container["env"]},
    )


def sped_up(query: str, speed: float) -> str:
    """Return a query of Prometheus with its ranges divided by the speed."""

    def shortened(match: re.Match[str]) -> str:
        return f"[{round(int(match[1]) * _UNIT_S[match[2]] * 1000 / speed)}ms]"

    return query if speed == 1 else re.sub(r"\[(\d+)([smh])\]", shortened, query)


def _read(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def _behavior(behavior: Mapping[str, Any], speed: float) -> tuple[Rules, Rules]:
    return (
        _rules(_DEFAULT_UP | behavior.get("scaleUp", {}), speed),
        _rules(_DEFAULT_DOWN | behavior.get("scaleDown", {}), speed),
    )


def _rules(rules: Mapping[str, Any], speed: float) -> Rules:
    known = {"stabilizationWindowSeconds", "selectPolicy", "policies"}
    if unknown := rules.keys() - known:
        raise ValueError(f"Not supported in a behaviour: {', '.join(sorted(unknown))}.")
    policies = (Policy(each["type"], each["value"], each["periodSeconds"] / speed) for each in rules["policies"])
    return Rules(rules["stabilizationWindowSeconds"] / speed, rules.get("selectPolicy", "Max"), tuple(policies))


def _trigger(trigger: Mapping[str, Any], speed: float) -> Metric:
    options = trigger["metadata"]
    if (trigger["type"], trigger.get("metricType", "AverageValue")) != ("prometheus", "AverageValue"):
        raise ValueError(f"Only triggers of Prometheus with AverageValue are supported. Got {trigger}.")
    if unknown := options.keys() - _TRIGGER_OPTIONS:
        raise ValueError(f"Not supported in a trigger: {', '.join(sorted(unknown))}.")
    return Metric(
        name=trigger.get("name", options["query"]),
        query=sped_up(options["query"], speed),
        target=float(options["threshold"]),
        ignores_null=options.get("ignoreNullValues", "true") == "true",
    )


def _pods_metric(metric: Mapping[str, Any], queries: Mapping[str, str], speed: float) -> Metric:
    if metric["type"] != "Pods" or metric["pods"]["target"]["type"] != "AverageValue":
        raise ValueError(f"Only metrics of pods with AverageValue are supported. Got {metric}.")
    name = metric["pods"]["metric"]["name"]
    if name not in queries:
        raise ValueError(f"prometheus-adapter has no rule for {name}.")
    target = float(metric["pods"]["target"]["averageValue"])
    return Metric(name, sped_up(queries[name], speed), target, is_per_pod=True)


def _adapter_query(rule: Mapping[str, Any]) -> str:
    """Return the query of a rule of prometheus-adapter, for all pods of the namespace."""
    names: Sequence[tuple[str, str]] = (
        ("Series", rule["seriesQuery"].partition("{")[0]),
        ("GroupBy", "pod"),
        ("LabelMatchers", f'namespace="{NAMESPACE}"'),
    )
    query: str = rule["metricsQuery"]
    for name, value in names:
        query = query.replace(f"<<.{name}>>", value)
    if "<<" in query:
        raise ValueError(f"Not supported in a rule of prometheus-adapter: {query}.")
    return query
