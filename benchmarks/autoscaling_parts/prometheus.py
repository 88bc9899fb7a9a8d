"""Runs a real Prometheus that discovers replicas by a file, and reads an autoscaler's metrics from it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from benchmarks.autoscaling_parts.controller import Workload, proposal_for_pods, proposal_for_total
from benchmarks.autoscaling_parts.manifests import NAMESPACE, Fallback, Metric, Scaling
from benchmarks.harness import servers

SCRAPE_S = 15.0
"""The interval of deploy/kubernetes/overlays/prometheus-operator/podmonitor.yaml, before it is sped up."""

_QUERY_S = 5.0


class Prometheus:
    """A client of a running Prometheus.

    Args:
        url: Its base address.
        targets: The file that it discovers the replicas by.
    """

    def __init__(self, url: str, targets: Path) -> None:
        self._client = httpx.Client(base_url=url, timeout=_QUERY_S, **servers.PLAIN_HTTP)
        self._targets = targets

    def scrape(self, ports: Mapping[str, int]) -> None:
        """Scrape these pods from now on, each at its port."""
        found = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"pod": pod, "namespace": NAMESPACE}}
            for pod, port in ports.items()
        ]
        part = self._targets.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.replace(self._targets)

    def query(self, query: str) -> list[tuple[dict[str, str], float]] | None:
        """Return labels and value of each series of a query's result; None if it fails."""
        try:
            response = self._client.get("/api/v1/query", params={"query": query})
            result = response.raise_for_status().json()["data"]["result"]
        except (httpx.HTTPError, ValueError, KeyError):
            return None
        return [(series["metric"], float(series["value"][1])) for series in result]

    def close(self) -> None:
        """Close the connections to it."""
        self._client.close()


@contextlib.contextmanager
def running(folder: Path, scrape_s: float) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes each replica every `scrape_s` seconds."""
    targets = folder / "replicas.json"
    targets.write_text("[]")
    job = {"job_name": "vit-api", "file_sd_configs": [{"files": [str(targets)]}]}
    interval = f"{round(scrape_s * 1000)}ms"
    # JSON is YAML.
    config = {"global": {"scrape_interval": interval, "scrape_timeout": interval}, "scrape_configs": [job]}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    port = servers.free_port()
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    url = f"http://127.0.0.1:{port}"
    with (
        servers.running(command, url + "/-/ready", cwd=folder, log=folder / "prometheus.log"),
        contextlib.closing(Prometheus(url, targets)) as prometheus,
    ):
        yield prometheus


class Metrics:
    """An autoscaler's metrics, with KEDA's fallback where they fail.

    Args:
        scaling: The manifest.
        prometheus: Where they are read.
    """

    def __init__(self, scaling: Scaling, prometheus: Prometheus) -> None:
        self._scaling = scaling
        self._prometheus = prometheus
        self._failures = dict.fromkeys((metric.name for metric in scaling.metrics), 0)

    def proposals(self, workload: Workload) -> tuple[list[int | None], dict[str, float | None]]:
        """Read each metric once; return its proposals, and the totals by the metrics' names (None: no value)."""
        proposals: list[int | None] = []
        totals: dict[str, float | None] = {}
        for metric in self._scaling.metrics:
            found = self._prometheus.query(metric.query)
            if metric.is_per_pod:
                values = {labels["pod"]: value for labels, value in found or () if "pod" in labels}
                proposals.append(proposal_for_pods(values, metric.target, workload))
                totals[metric.name] = sum(values.values()) if values else None
            else:
                totals[metric.name] = total = _total(metric, found)
                proposals.append(self._external_proposal(metric, total, workload))
        return proposals, totals

    def _external_proposal(self, metric: Metric, total: float | None, workload: Workload) -> int | None:
        if total is not None:
            self._failures[metric.name] = 0
            return proposal_for_total(total, metric.target, workload)
        self._failures[metric.name] += 1
        fallback = self._scaling.fallback
        if fallback is None or self._failures[metric.name] <= fallback.failures:
            return None
        return proposal_for_total(_replicas(fallback, workload.replicas) * metric.target, metric.target, workload)


def _total(metric: Metric, found: list[tuple[dict[str, str], float]] | None) -> float | None:
    """Return an external metric's value; None where KEDA's scaler of Prometheus returns an error."""
    if found is None or len(found) > 1:
        return None
    if not found:
        return 0.0 if metric.ignores_null else None
    return found[0][1]


def _replicas(fallback: Fallback, replicas: int) -> int:
    """Return the replicas that KEDA pretends to need, see https://keda.sh/docs/latest/reference/scaledobject-spec/."""
    return {
        "static": fallback.replicas,
        "currentReplicas": replicas,
        "currentReplicasIfHigher": max(replicas, fallback.replicas),
        "currentReplicasIfLower": min(replicas, fallback.replicas),
    }[fallback.behavior]
