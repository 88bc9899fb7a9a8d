"""What tests run in the environment with Ray and pyarrow, which `make ray` makes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from benchmarks.harness import ray_environment
from tests.support import forked_servers
from tests.support.server import PLAIN_HTTP, ROOT, free_port, wait_until

PYTHON = ray_environment.PYTHON

needs_ray = pytest.mark.skipif(not ray_environment.is_installed(), reason="needs Ray: run `make ray`")
only_all = pytest.mark.skipif(os.environ.get("RAY_TESTS") != "all", reason="takes minutes: `make ray-test` runs it")


def variables(**others: str) -> dict[str, str]:
    """Return the variables of a program that runs in the environment: one thread a model, no idle workers."""
    settings = {"VIT_API_CPU_THREADS": "1", "RAY_prestart_worker_first_driver": "0"}
    return ray_environment.variables(**settings | others)


def classify_command(*arguments: str | Path) -> list[str]:
    """Return the command `classify` with the embedded model."""
    return [str(PYTHON), "-m", "vit_api", "classify", "--model", "digits", *map(str, arguments)]


def classify(*arguments: str | Path, **others: str) -> subprocess.CompletedProcess[str]:
    """Run `classify` with the embedded model."""
    return _run(classify_command(*arguments), others)


def _run(command: list[str], others: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in the environment."""
    return forked_servers.run(command, cwd=ROOT, env=variables(**others), timeout_s=240)


def read_rows(uri: str | Path) -> list[dict[str, Any]]:
    """Return all rows of a folder of results."""
    rows: list[dict[str, Any]] = json.loads(_parquet_files("read", str(uri)))
    return rows


def write_manifest(path: Path, names: list[str]) -> None:
    """Write a Parquet file with a column of names."""
    _parquet_files("write", str(path), *names)


def _parquet_files(*arguments: str) -> str:
    result = _run([str(PYTHON), "-m", "tests.support.parquet_files", *arguments], {})
    assert result.returncode == 0, result.stderr
    return result.stdout


@contextlib.contextmanager
def object_store(bucket: str) -> Iterator[dict[str, str]]:
    """Run an S3-compatible server with an empty bucket; return the variables that have programs use it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        command = [str(PYTHON.parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables())
        try:
            wait_until(lambda: _is_up(url), timeout_s=60)
            httpx.put(f"{url}/{bucket}", **PLAIN_HTTP).raise_for_status()
            yield {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/moto-api/", **PLAIN_HTTP).status_code < 500
    except httpx.TransportError:
        return False


_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": int(sys.argv[1])})
nodes = cluster.head_node, cluster.add_node(num_cpus=int(sys.argv[1]))
print("ADDRESS", cluster.address, *(node.all_processes["raylet"][0].process.pid for node in nodes), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


class Nodes(NamedTuple):
    """A cluster of two nodes.

    Attributes:
        address: Its address.
        head: The main process of its head node, whose children are tasks and actors.
        other: That of the other node.
    """

    address: str
    head: int
    other: int


def children_of(pid: int) -> list[int]:
    """Return the processes that any thread of a process started; none if it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


@contextlib.contextmanager
def cluster_of_two_nodes(cpus: int) -> Iterator[Nodes]:
    """Run a Ray cluster of two nodes with so many CPUs each."""
    process = subprocess.Popen(
        [str(PYTHON), "-c", _CLUSTER, str(cpus)],
        env=variables(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        _, address, *raylets = next(line.split() for line in process.stdout if line.startswith("ADDRESS"))
        yield Nodes(address, *map(int, raylets))
    finally:
        process.stdin.close()
        process.wait(timeout=120)
        process.stdout.close()
