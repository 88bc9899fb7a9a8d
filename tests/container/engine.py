"""Builds images and runs containers without a daemon: mmdebstrap, buildah and podman, in a separate storage."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from benchmarks.harness.servers import free_port
from tests.support.server import ROOT

PROGRAMS = ("mmdebstrap", "buildah", "podman", "runc")
BASE = "localhost/vit-api-base"
READY_S = 120.0

_NO_VARIABLES: Mapping[str, str] = {}
_PODMAN_FOLDER = Path("/usr/lib/podman")
_SHOWN = 4000  # characters of a failed program's output
_BASE_S, _BUILD_S, _COMMAND_S, _END_S = 600, 1500, 120, 30
# As in the PyTorch image: pip without venv, a compiler, and a user that already has the id 1000.
_PACKAGES = "python3,python3-pip,ca-certificates,gcc"
_CUSTOMIZE = 'chroot "$1" useradd --create-home --uid 1000 ubuntu'
_CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4000:4000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "{network_backend}"
network_config_dir = "{folder}/networks"
"""


class Engine:
    """Images and containers in one folder that nothing else uses.

    Args:
        folder: An empty folder for everything: the storage, temporary files and configuration.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._archive = folder / "root.tar"
        (folder / "tmp").mkdir()
        backend = "netavark" if has_networks() else ""  # only the test of compose.yaml needs it
        (folder / "containers.conf").write_text(_CONTAINERS_CONF.format(network_backend=backend, folder=folder))
        storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        (folder / "storage.conf").write_text(storage)
        self._environment = os.environ | {
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "BUILDAH_FORMAT": "docker",  # the OCI format has no HEALTHCHECK
            "TMPDIR": str(folder / "tmp"),
        }

    def run(
        self,
        *command: str,
        timeout_s: float = _COMMAND_S,
        check: bool = True,
        variables: Mapping[str, str] = _NO_VARIABLES,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program with this storage and variables; if it fails, the error contains its output."""
        pipe = subprocess.PIPE
        environment = {**self._environment, **variables}
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            finally:
                _end(process)
        shown = f"{' '.join(command)}\n{out[-_SHOWN:]}{err[-_SHOWN:]}"
        assert not check or process.returncode == 0, shown
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def make_base(self) -> None:
        """Create a Debian image with what the Dockerfile expects of its base."""
        self.make_debian(_PACKAGES, f"--customize-hook={_CUSTOMIZE}")
        self.import_as(BASE)

    def make_debian(self, packages: str, *options: str) -> None:
        """Make a Debian root with these packages, separated by commas, for `import_as`."""
        options = ("--variant=minbase", f"--include={packages}", *options)
        self.run("mmdebstrap", *options, "bookworm", str(self._archive), timeout_s=_BASE_S)

    def import_as(self, image: str, *changes: str) -> None:
        """Make an image of the last root, with these instructions of a Dockerfile."""
        options = [f"--change={change}" for change in changes]
        self.run("podman", "import", "--quiet", *options, str(self._archive), image)

    def build(self, image: str, **arguments: str) -> None:
        """Build the Dockerfile on that base; pip uses this machine's package index."""
        configuration, paths = pip_configuration()
        secret = self._folder / "pip.conf"
        secret.write_text(configuration)
        options = ["--isolation", "chroot", "--network", "host", "--layers", f"--secret=id=pip,src={secret}"]
        options += [f"--volume={path}:{path}:ro" for path in paths]
        options += [f"--build-arg={name}={value}" for name, value in {"BASE_IMAGE": BASE, **arguments}.items()]
        self.run("buildah", "bud", *options, "--tag", image, ".", timeout_s=_BUILD_S)

    def layers(self, image: str) -> list[tuple[int, str]]:
        """Return each layer's size in bytes and its instruction, largest first."""
        listed = json.loads(self.run("podman", "history", "--no-trunc", "--format=json", image).stdout)
        return sorted(((layer["size"], layer["CreatedBy"]) for layer in listed), reverse=True)

    def remove(self) -> None:
        """Remove every container and image, and the folder."""
        self.run("podman", "rm", "--all", "--force", "--time=5", check=False)
        self.run("buildah", "rm", "--all", check=False)
        self.run("podman", "rmi", "--all", "--force", check=False)
        # Killed programs may have left bind mounts of this machine's folders, whose content must not be removed.
        for mount in _mounts_below(self._folder):
            self.run("umount", "--lazy", mount, check=False)
        self.run("rm", "--recursive", "--force", "--one-file-system", str(self._folder))


@dataclass(frozen=True)
class Container:
    """A server in a container.

    Attributes:
        engine: What runs it.
        name: Its name there.
        url: The server's base address.
        ready_after_s: From the start of the container until the server was ready.
    """

    engine: Engine
    name: str
    url: str
    ready_after_s: float

    def execute(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        return self.engine.run("podman", "exec", self.name, *command, check=check)

    def stop(self) -> int:
        """Stop it as an operator does, and return its exit status."""
        self.engine.run("podman", "stop", "--time=40", self.name)
        return int(self.engine.run("podman", "inspect", "--format={{.State.ExitCode}}", self.name).stdout)

    def log(self) -> str:
        """Return the server's output so far."""
        result = self.engine.run("podman", "logs", self.name)
        return result.stdout + result.stderr


@contextlib.contextmanager
def serve(engine: Engine, image: str, **environment: str) -> Iterator[Container]:
    """Run the image with minimal privileges: only /tmp is writable."""
    port = free_port()
    name = f"vit-api-{port}"
    variables = {"VIT_API_HOST": "127.0.0.1", "VIT_API_PORT": str(port), **environment}
    options = ["--network=host", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp"]
    options += ["--cap-drop=all", "--security-opt=no-new-privileges"]
    options += [f"--env={key}={value}" for key, value in variables.items()]
    start = time.monotonic()
    engine.run("podman", "run", "--detach", f"--name={name}", *options, image)
    try:
        container = Container(engine, name, f"http://127.0.0.1:{port}", 0.0)
        _wait_until_ready(container)
        yield Container(engine, name, container.url, time.monotonic() - start)
    finally:
        engine.run("podman", "rm", "--force", "--time=5", name)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process that still runs, and its children, with time to clean up."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)


def has_networks() -> bool:
    """Return whether podman can make networks in which containers find each other by name."""
    return all((_PODMAN_FOLDER / program).exists() for program in ("netavark", "aardvark-dns"))


def _mounts_below(folder: Path) -> list[str]:
    """Return the mount points below a folder, innermost first."""
    places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return sorted((place for place in places if place.startswith(f"{folder}/")), reverse=True)


def _wait_until_ready(container: Container) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(container.url + "/health/ready", timeout=5).status_code == 200:
                return
        state = container.engine.run("podman", "inspect", "--format={{.State.Status}}", container.name).stdout
        assert state.strip() == "running", f"the server ended:\n{container.log()}"
        time.sleep(0.1)
    raise AssertionError(f"not ready after {READY_S} s:\n{container.log()}")


def pip_configuration() -> tuple[str, list[Path]]:
    """Return this machine's pip configuration as one file, and the local paths that it refers to."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=True).stdout
    options: dict[str, str] = {}
    for line in listed.splitlines():  # the environment's come first, and win
        name, _, value = line.partition("=")
        options.setdefault(name.rpartition(".")[2], " ".join(ast.literal_eval(value).split()))
    lines = "".join(f"{name} = {value}\n" for name, value in options.items())
    return f"[global]\n{lines}", sorted({path for value in options.values() for path in _local_paths(value)})


def _local_paths(value: str) -> Iterator[Path]:
    for word in value.split():
        parts = urlsplit(word)
        # A local index has its files beside its pages.
        path = Path(parts.path).parent if parts.scheme == "file" else Path(word)
        if path.is_absolute() and path.exists():
            yield path
