"""`deploy/ray_serve.py` on a Ray cluster: answers, faults, updates, scaling, and no orphans."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.harness.checkpoints import save_small_vit
from benchmarks.harness.process_group import living
from tests.support.ray_environment import PYTHON, children_of, needs_ray, only_all, variables
from tests.support.server import PLAIN_HTTP, ROOT, RunningServer, free_port, wait_until

_DIGIT = (ROOT / "examples" / "digit-7.png").read_bytes()
_SETTINGS = {"model": "digits", "api_servers": 1, "cpu_threads": 1}
_START_S = 180
_DRAIN_S = 120
_REQUEST_S = 90


@dataclass
class Cluster:
    """A Ray cluster with our application."""

    url: str
    process: subprocess.Popen[str]

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def deploy(self, changes: dict[str, Any], replicas: int | None = None, **options: Any) -> None:
        """Apply a configuration: changes of settings and the number of replicas need no restart, other options do."""
        deployment: dict[str, Any] = {"name": "vit-api", "user_config": {"settings": changes}}
        if replicas is not None:
            deployment["num_replicas"] = replicas
        application = {
            "name": "vit-api",
            "route_prefix": "/",
            "import_path": "deploy.ray_serve:app",
            "args": {"settings": _SETTINGS} | options,
            "deployments": [deployment],
        }
        self.ask(deploy={"applications": [application]})

    def wait_for_replicas(self, count: int) -> None:
        def is_there() -> bool:
            answer = self.ask()
            assert "DEPLOY_FAILED" not in answer["applications"].values(), answer
            return answer["replicas"] == {"vit-api": {"RUNNING": count}} and len(answer["pids"]) == count

        wait_until(is_there, _START_S)

    def servers(self) -> list[int]:
        """Return the main processes of the servers of all replicas."""
        return [child for pid in self.ask()["pids"] for child in children_of(pid)]

    def only_replica(self) -> tuple[int, int]:
        """Wait until there is one replica with one server, and none that drains; return both processes."""
        self.wait_for_replicas(1)
        wait_until(lambda: len(self.servers()) == 1, _DRAIN_S)
        (replica,), (server,) = self.ask()["pids"], self.servers()
        return replica, server

    def classify(self, upload: bytes, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/predict", content=upload, timeout=_REQUEST_S, **PLAIN_HTTP, **options)

    def classify_batch(self, uploads: list[bytes]) -> httpx.Response:
        files = [("files", upload) for upload in uploads]
        return httpx.post(f"{self.url}/predict/batch", files=files, timeout=_REQUEST_S, **PLAIN_HTTP)


@dataclass
class Load:
    """A client that classifies distinct images until it is stopped, one a request or several."""

    cluster: Cluster
    images: int = 1
    results: list[int | str] = field(default_factory=list)
    is_stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        number = 0
        while not self.is_stopped.is_set():
            number += 1
            uploads = [_DIGIT + f"{threading.get_ident()}-{number}-{each}".encode() for each in range(self.images)]
            try:
                if self.images == 1:
                    response = self.cluster.classify(uploads[0])
                else:
                    response = self.cluster.classify_batch(uploads)
                self.results.append(response.status_code)
            except httpx.TransportError as error:
                self.results.append(type(error).__name__)


@contextlib.contextmanager
def _under_load(cluster: Cluster, clients: int = 4, images: int = 1) -> Iterator[list[Load]]:
    loads = [Load(cluster, images) for _ in range(clients)]
    threads = [threading.Thread(target=load.run) for load in loads]
    for thread in threads:
        thread.start()
    try:
        yield loads
    finally:
        for load in loads:
            load.is_stopped.set()
        for thread in threads:
            thread.join()


def _failures(loads: list[Load]) -> list[int | str]:
    return [result for load in loads for result in load.results if result != 200]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Run one replica; at the end, no process of any server may be left."""
    port = free_port()
    process = subprocess.Popen(
        [str(PYTHON), "-m", "tests.support.ray_driver", str(port)],
        cwd=ROOT,
        env=variables(PYTHONPATH=str(ROOT)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if "RAY_TEST_LOG" in os.environ else subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    servers: list[int] = []
    try:
        assert "address" in process.stdout.readline()
        running = Cluster(f"http://127.0.0.1:{port}", process)
        running.deploy({})
        running.wait_for_replicas(1)
        yield running
        servers = running.servers()
        assert servers
    finally:
        process.stdin.close()
        process.wait(timeout=120)
        process.stdout.close()
    wait_until(lambda: not any(living(server) for server in servers), 60)


@needs_ray
def test_answers_pass_through(cluster: Cluster, digits_server: RunningServer) -> None:
    """Status, headers and body are the server's: of a miss, a hit, a form, an error, and a path that needs escaping."""
    first, second = cluster.classify(_DIGIT), cluster.classify(_DIGIT)
    assert (first.status_code, first.headers["x-cache"], second.headers["x-cache"]) == (200, "miss", "hit")
    found = [(each["label"], each["confidence"]) for each in first.json()["predictions"]]
    assert found == [(label, pytest.approx(confidence)) for label, confidence in digits_server.top(_DIGIT)]
    assert len(first.headers.get_list("x-request-id")) == len(first.headers.get_list("date")) == 1
    form = httpx.post(f"{cluster.url}/predict?top_k=1", files={"file": ("a.png", _DIGIT)}, timeout=30, **PLAIN_HTTP)
    assert [each["label"] for each in form.json()["predictions"]] == ["7"]

    def parts() -> Iterator[bytes]:
        yield from (_DIGIT[:100], _DIGIT[100:], b"more")

    assert cluster.classify(parts()).json()["predictions"][0]["label"] == "7"  # type: ignore[arg-type]
    bad = cluster.classify(b"damaged", headers={"x-request-id": "mine"})
    assert (bad.status_code, bad.json()["code"], bad.json()["request_id"]) == (415, "unsupported_image", "mine")
    missing = httpx.get(f"{cluster.url}/no%20such%2Fpath?a=%20", timeout=30, **PLAIN_HTTP)
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


@needs_ray
def test_a_killed_server_loses_nothing(cluster: Cluster) -> None:
    """Requests wait for the server that takes its place, or are told to come again; the replica stays."""
    replica, server = cluster.only_replica()
    with _under_load(cluster) as loads:
        wait_until(lambda: all(load.results for load in loads), 60)
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: cluster.servers() not in ([], [server]), 60)
        seen = [len(load.results) for load in loads]
        wait_until(lambda: all(len(load.results) > before + 2 for load, before in zip(loads, seen, strict=True)), 90)
    assert set(_failures(loads)) <= {503}  # of a machine on which the start takes more than the 25 s of waiting
    assert cluster.ask()["pids"] == [replica]
    wait_until(lambda: not living(server), 30)


@needs_ray
@only_all
def test_settings_change_without_a_restart_of_the_replica(cluster: Cluster) -> None:
    """A new `user_config` starts a server beside the one before, which then drains: no request fails."""
    replica, server = cluster.only_replica()
    with _under_load(cluster) as loads:
        cluster.deploy({"model_name": "renamed", "thresholds": {"7": 0.5, "*": 1.0}})
        wait_until(lambda: cluster.classify(_DIGIT).json().get("model") == "renamed", _START_S)
        wait_until(lambda: not living(server), 90)
        assert cluster.classify(_DIGIT).json()["flagged"] is True
        for traffic in (100, 0):
            cluster.deploy(_two_versions(traffic))
            version = "1" if traffic else "2"
            wait_until(lambda to=version: cluster.classify(_DIGIT).headers.get("x-model-version") == to, _START_S)
    assert _failures(loads) == []
    assert cluster.ask()["pids"] == [replica]
    cluster.deploy({})
    wait_until(lambda: cluster.classify(_DIGIT).json().get("model") == "digits", _START_S)


def _two_versions(traffic: int) -> dict[str, Any]:
    """Return the settings that give version 1 of a model so much of its traffic, and version 2 the others."""
    first, second = ({"name": "digits", "version": version, "model": "digits"} for version in "12")
    return {"model": None, "models": [first | {"traffic": traffic}, second | {"traffic": 100 - traffic}]}


@needs_ray
@only_all
def test_a_killed_replica_leaves_no_orphan(cluster: Cluster) -> None:
    """Its server ends with it; another replica takes its place, and only broken connections are lost."""
    replica, server = cluster.only_replica()
    with _under_load(cluster) as loads:
        wait_until(lambda: all(load.results for load in loads), 60)
        os.kill(replica, signal.SIGKILL)
        wait_until(lambda: not living(server), 60)
        wait_until(lambda: replica not in cluster.ask()["pids"], 60)
        cluster.wait_for_replicas(1)
        seen = [len(load.results) for load in loads]
        wait_until(lambda: all(len(load.results) > before for load, before in zip(loads, seen, strict=True)), 90)
    assert len(_failures(loads)) <= 2 * len(loads), _failures(loads)


@needs_ray
@only_all
def test_replicas_follow_the_configuration_under_load(cluster: Cluster) -> None:
    """From one to three and back to one, no request fails, and the servers that are not wanted end."""
    replica, server = cluster.only_replica()
    with _under_load(cluster) as loads:
        cluster.deploy({}, replicas=3)
        cluster.wait_for_replicas(3)
        servers = cluster.servers()
        assert len(servers) == 3
        assert replica in cluster.ask()["pids"]
        assert server in servers
        cluster.deploy({}, replicas=1)
        cluster.wait_for_replicas(1)
        wait_until(lambda: sum(bool(living(server)) for server in servers) == 1, _DRAIN_S)
    assert _failures(loads) == []


@needs_ray
@only_all
def test_replicas_follow_the_images_in_the_servers(cluster: Cluster, tmp_path: Path) -> None:
    """Our own metric scales from one to three and back: three requests are not many, their 96 images are."""
    save_small_vit(tmp_path)
    settings = _SETTINGS | {"model": str(tmp_path)}
    delays = {"upscale_delay_s": 1, "downscale_delay_s": 2}
    cluster.deploy({}, settings=settings, max_replicas=3, target_images=30, **delays)
    wait_until(lambda: cluster.classify(_DIGIT).json().get("model") != "digits", _START_S)
    cluster.only_replica()
    with _under_load(cluster, clients=3, images=32) as loads:
        cluster.wait_for_replicas(3)
        servers = cluster.servers()
    cluster.only_replica()
    wait_until(lambda: sum(bool(living(server)) for server in servers) == 1, _DRAIN_S)
    assert _failures(loads) == []


@needs_ray
def test_the_manifest_for_kuberay(cluster: Cluster) -> None:
    """Its Serve configuration is one that the pinned Ray takes, and its options are ours."""
    manifest = yaml.safe_load((ROOT / "deploy" / "kuberay" / "rayservice.yaml").read_text())
    assert manifest["kind"] == "RayService"
    pinned = (ROOT / "requirements-ray.txt").read_text()
    assert f"=={manifest['spec']['rayClusterConfig']['rayVersion']}\n" in pinned
    assert cluster.ask(validate=yaml.safe_load(manifest["spec"]["serveConfigV2"]))["replicas"]
