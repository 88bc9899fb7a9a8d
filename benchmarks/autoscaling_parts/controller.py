"""The HorizontalPodAutoscaler's algorithm: figures in, a number of replicas out. Pure; its times are passed in.

The rules are those of https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/ (autoscaling/v2):
a ratio within the tolerance changes nothing; of several metrics the largest proposal counts; a metric without a value
forbids to scale down; the stabilisation windows come before the policies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.autoscaling_parts.manifests import Policy, Rules, Scaling

TOLERANCE = 0.1
"""The default of kube-controller-manager's --horizontal-pod-autoscaler-tolerance."""


@dataclass(frozen=True)
class Workload:
    """What the autoscaler sees of a Deployment.

    Attributes:
        replicas: The number that is asked for.
        ready: The names of pods that are ready.
        unready: The names of the others; none of those that are terminating.
    """

    replicas: int
    ready: frozenset[str]
    unready: frozenset[str] = frozenset()


def proposal_for_total(total: float, target: float, workload: Workload) -> int:
    """Return the replicas for an external metric with AverageValue, as KEDA's are."""
    running = len(workload.ready) + len(workload.unready)
    if running and abs(total / (target * running) - 1) <= TOLERANCE:
        return running
    return math.ceil(total / target)


def proposal_for_pods(values: Mapping[str, float], target: float, workload: Workload) -> int | None:
    """Return the replicas for a metric of pods; None if no ready pod has a value.

    To scale up, pods that are not ready or have no value count as zero; to scale down, those without one count as the
    target. The direction is never changed by that.
    """
    known = {pod: value for pod, value in values.items() if pod in workload.ready}
    if not known:
        return None
    missing = workload.ready - known.keys()
    ratio = _ratio(known, target)
    counted = known | dict.fromkeys(missing, target if ratio < 1 else 0.0)
    if ratio > 1:
        counted |= dict.fromkeys(workload.unready, 0.0)
    adjusted = _ratio(counted, target)
    if abs(adjusted - 1) <= TOLERANCE or (ratio < 1) != (adjusted < 1):
        return workload.replicas
    return math.ceil(adjusted * len(counted))


def _ratio(values: Mapping[str, float], target: float) -> float:
    return sum(values.values()) / len(values) / target


class Autoscaler:
    """Decides on the number of replicas, with the memory that windows and policies need.

    Args:
        scaling: The manifest.
        now: The time of the start, in seconds of any clock.
        replicas: The number at the start.
    """

    def __init__(self, scaling: Scaling, now: float, replicas: int) -> None:
        self._scaling = scaling
        self._recommendations = [(now, replicas)]
        self._changes: list[tuple[float, int]] = []

    def decide(self, now: float, replicas: int, proposals: Sequence[int | None]) -> int:
        """Return the new number of replicas.

        Args:
            now: The time.
            replicas: The present number.
            proposals: One of each metric; None: it has no value.
        """
        known = [proposal for proposal in proposals if proposal is not None]
        if not known or (len(known) < len(proposals) and max(known) < replicas):
            return replicas
        decided = self._limited(now, replicas, self._stabilised(now, replicas, max(known)))
        if decided != replicas:
            self._changes.append((now, decided - replicas))
        return decided

    def _stabilised(self, now: float, replicas: int, proposal: int) -> int:
        """Return the least change that any recommendation within a direction's window asks for."""
        self._recommendations.append((now, proposal))
        up, down = self._scaling.up.window_s, self._scaling.down.window_s
        self._recommendations = [each for each in self._recommendations if each[0] > now - max(up, down)]
        lowest = min([proposal, *_since(self._recommendations, now - up)])
        highest = max([proposal, *_since(self._recommendations, now - down)])
        return min(max(replicas, lowest), highest)

    def _limited(self, now: float, replicas: int, wanted: int) -> int:
        """Return the wanted number within the policies and the bounds."""
        if wanted > replicas:
            limit = self._limit(now, replicas, self._scaling.up, _grown, (max, min))
            wanted = min(wanted, max(limit, replicas))
        elif wanted < replicas:
            limit = self._limit(now, replicas, self._scaling.down, _shrunk, (min, max))
            wanted = max(wanted, min(limit, replicas))
        return min(max(wanted, self._scaling.min_replicas), self._scaling.max_replicas)

    def _limit(
        self,
        now: float,
        replicas: int,
        rules: Rules,
        changed: Callable[[int, Policy], int],
        most_and_least: tuple[Callable[[Iterable[int]], int], Callable[[Iterable[int]], int]],
    ) -> int:
        if rules.select == "Disabled":
            return replicas
        limits = []
        for policy in rules.policies:
            at_start = replicas - sum(_since(self._changes, now - policy.period_s))
            limits.append(changed(at_start, policy))
        return most_and_least[rules.select == "Min"](limits)


def _since(timed: Iterable[tuple[float, int]], start: float) -> list[int]:
    return [number for at, number in timed if at > start]


def _grown(replicas: int, policy: Policy) -> int:
    return replicas + policy.value if policy.kind == "Pods" else math.ceil(replicas * (1 + policy.value / 100))


def _shrunk(replicas: int, policy: Policy) -> int:
    return replicas - policy.value if policy.kind == "Pods" else int(replicas * (1 - policy.value / 100))
