"""Closes the loop: metrics from Prometheus, a decision, replicas behind HAProxy, while clients go on."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.autoscaling_parts import manifests, prometheus, proxy
from benchmarks.autoscaling_parts.controller import Autoscaler
from benchmarks.autoscaling_parts.deployment import Deployment
from benchmarks.autoscaling_parts.manifests import Scaling
from benchmarks.autoscaling_parts.prometheus import Metrics, Prometheus
from benchmarks.autoscaling_parts.proxy import Proxy

SYNC_S = 15.0
"""The default of kube-controller-manager's --horizontal-pod-autoscaler-sync-period, before it is sped up."""

_STEP_S = 0.5
_FIRST_PORT = 20_000
_ASSIGNED = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The ports that Linux assigns to outgoing connections."""
_PATIENCE_S = 60.0
# Each takes all that one HTTP process and one thread allow; unique images, so that each takes a place in a batch.
_SETTINGS = {"model": "digits", "api_servers": 1, "cpu_threads": 1, "cache_size": 0, "trusted_proxies": "127.0.0.1"}
READ: Mapping[str, Callable[[float], Scaling]] = {"keda": manifests.keda, "hpa": manifests.hpa}


@dataclass(frozen=True)
class Sample:
    """The state at one time, in seconds since the start of the load.

    Attributes:
        at_s: The time.
        replicas: The number that the autoscaler asks for.
        ready: Replicas that are ready and not terminating.
        metrics: The totals that the last decision was made by; None: no value.
    """

    at_s: float
    replicas: int
    ready: int
    metrics: Mapping[str, float | None]


class Loop:
    """A running loop; `run_until` lets it go on.

    Attributes:
        deployment: The replicas.
        proxy: The HAProxy in front of them.
        samples: The states so far, since `begin`.
    """

    def __init__(
        self, scaling: Scaling, running: Deployment, source: Prometheus, in_front: Proxy, sync_s: float
    ) -> None:
        self.deployment = running
        self.proxy = in_front
        self.samples: list[Sample] = []
        self._metrics = Metrics(scaling, source)
        self._sync_s = sync_s
        self._scaling = scaling
        self._autoscaler: Autoscaler | None = None
        self._totals: Mapping[str, float | None] = {}
        self._began_at = self._next_sync = 0.0

    def begin(self) -> None:
        """Begin to decide; times count from now."""
        self._began_at = self._next_sync = time.monotonic()
        self._autoscaler = Autoscaler(self._scaling, self._began_at, self.deployment.replicas)

    def now_s(self) -> float:
        """Return the seconds since `begin`."""
        return time.monotonic() - self._began_at

    def run_until(self, is_over: Callable[[], bool]) -> None:
        """Decide and act until a condition is true, which is asked once a step."""
        assert self._autoscaler is not None
        while not is_over():
            if (now := time.monotonic()) >= self._next_sync:
                self._next_sync += self._sync_s
                proposals, self._totals = self._metrics.proposals(self.deployment.workload())
                self.deployment.replicas = self._autoscaler.decide(now, self.deployment.replicas, proposals)
            self.deployment.step()
            ready = len(self.deployment.workload().ready)
            at_s = round(self.now_s(), 2)
            self.samples.append(Sample(at_s, self.deployment.replicas, ready, self._totals))
            time.sleep(_STEP_S)

    def described(self) -> list[dict[str, Any]]:
        """Return the samples that differ from those before them, and the last."""
        states = [asdict(sample) for sample in self.samples]
        values = [{name: value for name, value in state.items() if name != "at_s"} for state in states]
        last = len(states) - 1
        return [
            state for number, state in enumerate(states) if number in (0, last) or values[number] != values[number - 1]
        ]


@contextlib.contextmanager
def running(kind: str, speed: float, batch_s: float, folder: Path) -> Iterator[Loop]:
    """Run a loop by the manifest of an autoscaler, `keda` or `hpa`, at a speed, with the manifest's fewest replicas."""
    scaling, template = READ[kind](speed), manifests.template()
    # As many again may be terminating.
    ports = free_ports(2 * (scaling.max_replicas + template.max_surge))
    with (
        prometheus.running(folder, prometheus.SCRAPE_S / speed) as source,
        Deployment(
            template,
            ports,
            scaling.min_replicas,
            batch_s=batch_s,
            folder=folder,
            settings=_SETTINGS,
            discover=source.scrape,
        ) as replicas,
        proxy.running(folder, ports) as in_front,
    ):
        _wait_until(lambda: in_front.up() == scaling.min_replicas)
        _wait_until(lambda: len(source.query("inference_ready == 1") or ()) == scaling.min_replicas)
        yield Loop(scaling, replicas, source, in_front, SYNC_S / speed)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, and that no connection gets for itself before a replica uses them.

    Raises:
        OSError: There are not that many below those that Linux assigns.
    """
    first_assigned = int(_ASSIGNED.read_text().split()[0])
    candidates = list(range(_FIRST_PORT, first_assigned))
    random.shuffle(candidates)
    found: list[int] = []
    for port in candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"There are only {len(found)} free ports from {_FIRST_PORT} to {first_assigned - 1}; need {count}.")


def _wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"HAProxy and Prometheus did not find the replicas within {_PATIENCE_S:g} s.")
        time.sleep(0.1)
