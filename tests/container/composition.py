"""Starts compose.yaml with podman-compose, on free ports; Redis and Prometheus are Debian's."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness.servers import free_port
from tests.container.engine import Engine
from tests.support.server import ROOT

# Grafana is left out: it is neither in Debian nor on a package index, and its images can't be pulled here.
SERVICES = ("server", "redis", "prometheus")

_PACKAGES = "redis-server,redis-tools,prometheus,wget"
_IMAGES = {
    "redis": ("localhost/debian-redis", []),
    # As in the image of the project: the command is the program's arguments, and it does not run as root.
    "prometheus": ("localhost/debian-prometheus", ['ENTRYPOINT ["prometheus"]', "USER prometheus"]),
}
_UP_S = 180


@dataclass(frozen=True)
class Composition:
    """The running services of compose.yaml.

    Attributes:
        engine: What runs them.
        file: What is added to compose.yaml: other images and ports.
        project: The name that its containers begin with.
        server_url: The server's base address.
        prometheus_url: That of Prometheus.
    """

    engine: Engine
    file: Path
    project: str
    server_url: str
    prometheus_url: str

    def compose(self, *command: str, **variables: str) -> str:
        """Run a command of podman-compose; return its output."""
        program = [sys.executable, "-m", "podman_compose", "--in-pod=false", f"--project-name={self.project}"]
        files = [f"--file={ROOT / 'compose.yaml'}", f"--file={self.file}"]
        result = self.engine.run(*program, *files, *command, timeout_s=_UP_S, variables=variables)
        return result.stdout + result.stderr

    def execute(self, service: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in a service's container."""
        return self.engine.run("podman", "exec", self.container(service), *command, check=check)

    def is_healthy(self, service: str) -> bool:
        """Run the check of compose.yaml, which systemd would repeat."""
        check = ("podman", "healthcheck", "run", self.container(service))
        return self.engine.run(*check, check=False).returncode == 0

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what podman says of a service's container."""
        (found,) = json.loads(self.engine.run("podman", "inspect", self.container(service)).stdout)
        assert isinstance(found, dict)
        return found

    def container(self, service: str) -> str:
        """Return the name of a service's container."""
        return f"{self.project}_{service}_1"

    def log(self) -> str:
        """Return the server's output so far."""
        result = self.engine.run("podman", "logs", self.container("server"))
        return result.stdout + result.stderr


@contextlib.contextmanager
def composed(engine: Engine, image: str, folder: Path, **variables: str) -> Iterator[Composition]:
    """Run `up` with these variables in the shell, and `down` at the end.

    Args:
        engine: Podman with its storage.
        image: The built image.
        folder: An empty folder.
        variables: What the user has set, as for `docker compose up`.
    """
    engine.make_debian(_PACKAGES)
    for name, changes in _IMAGES.values():
        engine.import_as(name, *changes)
    port, prometheus = free_port(), free_port()
    file = folder / "compose.test.yaml"
    file.write_text(_replacements(image, port, prometheus))
    urls = (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{prometheus}")
    composition = Composition(engine, file, f"vit-api-{port}", *urls)
    try:
        composition.compose("up", "--detach", "--no-build", *SERVICES, **variables)
        yield composition
    finally:
        composition.compose("down", "--volumes")


class _Override(list[str]):
    """A list that replaces that of compose.yaml, instead of adding to it."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes such lists with Compose's tag for it."""


_Dumper.add_representer(_Override, lambda dumper, ports: dumper.represent_sequence("!override", ports))


def _replacements(image: str, port: int, prometheus: int) -> str:
    """Return what differs from compose.yaml: where images come from, and the ports of the host."""
    services: dict[str, dict[str, Any]] = {name: {"image": each} for name, (each, _) in _IMAGES.items()}
    services["server"] = {"image": image, "ports": _Override([f"127.0.0.1:{port}:7860"])}
    services["prometheus"]["ports"] = _Override([f"127.0.0.1:{prometheus}:9090"])
    return str(yaml.dump({"services": services}, Dumper=_Dumper))
