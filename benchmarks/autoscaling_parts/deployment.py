"""A Deployment without a cluster: real servers, started and stopped as Kubernetes does it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import httpx

from benchmarks.autoscaling_parts import replica
from benchmarks.autoscaling_parts.controller import Workload
from benchmarks.autoscaling_parts.manifests import Template
from benchmarks.harness import servers
from benchmarks.harness.machine import ROOT

_PROBE_S = 2.0
_SHOWN = 1000  # characters
_START_S, _STOP_S = 120.0, 60.0
_COMMAND = (sys.executable, "-m", replica.__name__)


@dataclass(frozen=True)
class Pod:
    """A pod that is not terminating: its name, the revision of its template, and whether it is ready."""

    name: str
    revision: int
    is_ready: bool


def due(pods: Sequence[Pod], replicas: int, revision: int, template: Template) -> tuple[int, list[str]]:
    """Return how many pods of the revision to start now, and the names of those to stop.

    As a Deployment's rolling update: at most `max_surge` more than the replicas, and at least all but `max_unavailable`
    of them ready. Pods that are not ready are stopped first, and those of older revisions before others.

    Args:
        pods: In the order of their starts; none that is terminating.
        replicas: The number that is asked for.
        revision: The newest.
        template: What the manifest says.
    """
    new = [pod for pod in pods if pod.revision == revision]
    old = [pod for pod in pods if pod.revision != revision]
    room = replicas + template.max_surge - len(pods) if old else replicas - len(new)
    starts = max(0, min(room, replicas - len(new)))
    stops = [pod.name for pod in old if not pod.is_ready]
    spare = sum(pod.is_ready for pod in pods) - (replicas - template.max_unavailable)
    stops += [pod.name for pod in old if pod.is_ready][: max(0, spare)]
    excess = len(new) - replicas
    youngest_first = new[::-1]
    youngest_first.sort(key=lambda pod: pod.is_ready)
    stops += [pod.name for pod in youngest_first[: max(0, excess)]]
    return starts, stops


@dataclass
class _Running:
    pod: Pod
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    is_terminating: bool = False
    was_ready: bool = False


class Deployment:
    """Replicas of the server, each in its own process group.

    Attributes:
        replicas: The number that is asked for; `step` starts or stops what is missing or too many.
        crashes: The ends of the logs of servers that ended without having been stopped.
        failed_stops: Exit statuses of those that did not stop cleanly.

    Args:
        template: The manifest.
        ports: Those that replicas may use; there must be enough for those that are terminating, too.
        replicas: The number at the start.
        batch_s: How long each batch takes on the device of a replica.
        folder: For the logs.
        settings: Further settings of the server.
        discover: Called with the ports of all pods, by their names, after each change.
    """

    def __init__(
        self,
        template: Template,
        ports: Sequence[int],
        replicas: int,
        *,
        batch_s: float,
        folder: Path,
        settings: Mapping[str, object],
        discover: Callable[[Mapping[str, int]], None],
    ) -> None:
        self.replicas = replicas
        self.crashes: list[str] = []
        self.failed_stops: list[int] = []
        self._template = template
        self._ports = ports
        self._folder = folder
        self._environment = servers.environment_with(host="127.0.0.1", log_level="warning", **settings)
        self._environment |= {**template.environment, replica.BATCH_S: str(batch_s)}
        self._discover = discover
        self._revision = 1
        self._started = 0
        self._running: list[_Running] = []
        self._client = httpx.Client(timeout=_PROBE_S, **servers.PLAIN_HTTP)

    def __enter__(self) -> Self:
        """Wait until all replicas are ready."""
        try:
            self._wait_until_rolled_out(_START_S)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all replicas."""
        self.stop()

    def roll_out(self) -> None:
        """Replace all pods by new ones, in the next steps."""
        self._revision += 1

    def is_rolled_out(self) -> bool:
        """Return whether all replicas are ready and of the newest revision, and there are no others."""
        pods = self._pods()
        return len(pods) == self.replicas and all(pod.is_ready and pod.revision == self._revision for pod in pods)

    def workload(self) -> Workload:
        """Return what an autoscaler sees."""
        pods = self._pods()
        ready = frozenset(pod.name for pod in pods if pod.is_ready)
        return Workload(self.replicas, ready, frozenset(pod.name for pod in pods) - ready)

    def step(self) -> None:
        """Probe the pods, and start and stop what is due."""
        before = self._discovered()
        self._reap()
        for running in self._running:
            if not running.is_terminating:
                running.pod = replace(running.pod, is_ready=self._is_ready(running.port))
                running.was_ready |= running.pod.is_ready
        starts, stops = due(self._pods(), self.replicas, self._revision, self._template)
        for running in self._running:
            if running.pod.name in stops:
                running.is_terminating = True
                running.process.send_signal(signal.SIGTERM)
        for _ in range(starts):
            self._start()
        if self._discovered() != before:
            self._discover(self._discovered())

    def _wait_until_rolled_out(self, timeout_s: float) -> None:
        """Step until `is_rolled_out`.

        Raises:
            TimeoutError: It was not in time.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_rolled_out():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.replicas} replicas were not ready within {timeout_s:g} s: {self._pods()}.")
            self.step()
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop all pods at once, and kill what does not stop."""
        for running in self._running:
            if running.process.poll() is None and not running.is_terminating:
                running.process.send_signal(signal.SIGTERM)
        for running in self._running:
            # Waited for first, since another SIGTERM would reach a server that has already put its handlers away.
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(_STOP_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                servers.stop(running.process)
            self._note_stop(running)
        self._running.clear()
        self._client.close()

    def _pods(self) -> list[Pod]:
        return [running.pod for running in self._running if not running.is_terminating]

    def _discovered(self) -> dict[str, int]:
        return {running.pod.name: running.port for running in self._running}

    def _reap(self) -> None:
        for running in [each for each in self._running if each.process.poll() is not None]:
            self._running.remove(running)
            if not running.is_terminating:
                self.crashes.append(running.log.read_text(errors="replace")[-_SHOWN:])
            else:
                self._note_stop(running)

    def _note_stop(self, running: _Running) -> None:
        # Until it handles signals, SIGTERM ends a process at once. It had no requests then.
        clean = (0,) if running.was_ready else (0, -signal.SIGTERM)
        if running.process.returncode not in clean:
            self.failed_stops.append(running.process.returncode)

    def _is_ready(self, port: int) -> bool:
        try:
            return self._client.get(f"http://127.0.0.1:{port}{self._template.readiness_path}").is_success
        except httpx.TransportError:
            return False

    def _start(self) -> None:
        taken = {running.port for running in self._running}
        free = [port for port in self._ports if port not in taken]
        if not free:  # the next step tries again
            return
        self._started += 1
        name = f"vit-api-{self._started}"
        log = self._folder / f"{name}.log"
        environment = self._environment | {"VIT_API_PORT": str(free[0])}
        with log.open("wb") as output:
            process = subprocess.Popen(
                _COMMAND, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self._running.append(_Running(Pod(name, self._revision, is_ready=False), free[0], process, log))
