"""Runs the pod of deploy/kubernetes in podman, as `podman kube play` reads it; the caller is the kubelet."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.harness.servers import free_port
from tests.container.engine import Engine
from tests.support.server import ROOT

BASE = ROOT / "deploy" / "kubernetes" / "base"
_POLL_S = 0.1


@dataclass(frozen=True)
class Pod:
    """A played pod.

    Attributes:
        engine: What runs it.
        name: The name that podman gives it.
        url: The server's base address.
        spec: The pod's part of the rendered Deployment.
        played_at: When podman was started, in seconds of the monotonic clock.
    """

    engine: Engine
    name: str
    url: str
    spec: dict[str, Any]
    played_at: float

    @property
    def server(self) -> dict[str, Any]:
        """Return the manifest of the server's container."""
        (container,) = self.spec["containers"]
        assert isinstance(container, dict)
        return container

    @property
    def container(self) -> str:
        """Return the name that podman gives the server's container."""
        return f"{self.name}-{self.server['name']}"

    def probe(self, name: str) -> int | None:
        """Send a probe of the manifest; return the status of its response, None without one."""
        probe = self.server[f"{name}Probe"]
        try:
            return httpx.get(self.url + probe["httpGet"]["path"], timeout=probe["timeoutSeconds"]).status_code
        except httpx.TransportError:
            return None

    def wait_for(self, name: str, seconds: float) -> None:
        """Repeat a probe until it succeeds; fail after these seconds since the pod was played."""
        self.wait_until(lambda: self.probe(name) == httpx.codes.OK, seconds)

    def wait_until(self, is_true: Callable[[], bool], seconds: float) -> None:
        """Poll a condition; fail after these seconds since the pod was played, with the server's log."""
        while not is_true():
            assert time.monotonic() < self.played_at + seconds, self.log()
            time.sleep(_POLL_S)

    def execute(self, *command: str, check: bool = True) -> str:
        """Run a command in the server's container; return its output."""
        result = self.engine.run("podman", "exec", self.container, *command, check=check)
        return result.stdout + result.stderr

    def inspect(self) -> dict[str, Any]:
        """Return what podman says of the server's container."""
        (found,) = json.loads(self.engine.run("podman", "inspect", self.container).stdout)
        assert isinstance(found, dict)
        return found

    def stop(self) -> int:
        """Stop it as a kubelet does, with the manifest's grace period; return the server's exit status."""
        grace_s = self.spec["terminationGracePeriodSeconds"]
        self.engine.run("podman", "pod", "stop", f"--time={grace_s}", self.name)
        return int(self.inspect()["State"]["ExitCode"])

    def log(self) -> str:
        """Return the server's output so far."""
        result = self.engine.run("podman", "logs", self.container)
        return result.stdout + result.stderr


@contextlib.contextmanager
def play(engine: Engine, image: str, folder: Path) -> Iterator[Pod]:
    """Render the base with this image and the embedded model, and play all of it.

    Args:
        engine: Podman with its storage.
        image: The image's name there.
        folder: An empty folder for the overlay and the rendered manifests.
    """
    port = free_port()
    rendered = _render(engine, image, folder, port)
    file = folder / "rendered.yaml"
    file.write_text(rendered)
    (deployment,) = (each for each in yaml.safe_load_all(rendered) if each["kind"] == "Deployment")
    name = f"{deployment['metadata']['name']}-pod-0"
    played_at = time.monotonic()
    try:
        engine.run("podman", "kube", "play", str(file))
        yield Pod(engine, name, f"http://127.0.0.1:{port}", deployment["spec"]["template"]["spec"], played_at)
    finally:
        engine.run("podman", "pod", "rm", "--force", "--time=5", name, check=False)
        # Podman names an emptyDir like the volume, without the pod.
        engine.run("podman", "volume", "rm", "--all", "--force", check=False)


def _render(engine: Engine, image: str, folder: Path, port: int) -> str:
    """Return the manifests of the base, changed only where podman on this machine's network needs it."""
    program = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs kubectl: python -m scripts.kubernetes_tools installs it")
    container = "/spec/template/spec/containers/0"
    variables = {"VIT_API_MODEL": "digits", "VIT_API_HOST": "127.0.0.1", "VIT_API_PORT": str(port)}
    patch: list[dict[str, Any]] = [
        {"op": "add", "path": "/spec/template/spec/hostNetwork", "value": True},
        # Podman maps ports on a bridge only, and does not know their names without the mapping.
        {"op": "remove", "path": f"{container}/ports"},
        *(
            {"op": "replace", "path": f"{container}/{name}Probe/httpGet/port", "value": port}
            for name in ("startup", "readiness", "liveness")
        ),
        *(
            {"op": "add", "path": f"{container}/env/-", "value": {"name": name, "value": value}}
            for name, value in variables.items()
        ),
    ]
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(BASE, folder.resolve())],
        "images": [{"name": "vit-api", "newName": image, "newTag": "latest"}],
        "replicas": [{"name": "vit-api", "count": 1}],
        "patches": [{"target": {"kind": "Deployment", "name": "vit-api"}, "patch": json.dumps(patch)}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return engine.run(program, "kustomize", str(folder)).stdout
