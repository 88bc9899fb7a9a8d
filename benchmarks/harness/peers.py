"""Starts the other servers that ours is compared with, each from its own environment.

    python -m benchmarks.harness.peers

creates the environments.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import servers
from benchmarks.harness.machine import ROOT
from benchmarks.harness.peer_environments import Environment, NotInstalled

TRITON_MODEL = "vit"
_MAX_BATCH_SIZE = 32
_REQUEST_MS = 60_000
_STOP_S = 20.0


@dataclass(frozen=True)
class Peer:
    """Another server.

    Attributes:
        name: Its name in the table.
        environment: The environment of its packages.
        package: The package whose version is reported.
        serve: Runs it with a checkpoint and a dtype until the context ends.
    """

    name: str
    environment: Environment
    package: str
    serve: Callable[[Environment, str, str], AbstractContextManager[servers.Server]]

    def require(self, *, may_install: bool) -> None:
        """Create its environment if it is missing.

        Raises:
            NotInstalled: It can't run here.
        """
        if not may_install and not self.environment.is_installed():
            raise NotInstalled("it is not installed, and --quick installs nothing: run `make peers`.")
        self.environment.install()

    def running(self, model: str, dtype: str) -> AbstractContextManager[servers.Server]:
        """Run it until the context ends."""
        return self.serve(self.environment, model, dtype)

    def version(self) -> str:
        """Return its package and version."""
        return f"{self.package} {self.environment.version(self.package)}"


@contextlib.contextmanager
def _mosec(environment: Environment, model: str, dtype: str) -> Iterator[servers.Server]:
    port = servers.free_port()
    command = [str(environment.python), "-m", "benchmarks.baselines.mosec_server", model, "--dtype", dtype]
    settings = {"ADDRESS": "127.0.0.1", "PORT": port, "TIMEOUT": _REQUEST_MS, "LOG_LEVEL": "warning"}
    variables = {f"MOSEC_{name}": str(value) for name, value in settings.items()}
    url = f"http://127.0.0.1:{port}"
    with (
        _log() as log,
        servers.running(
            command,
            url + "/",
            environment=environment.variables() | variables,
            log=log,
            stop_s=_STOP_S,
            must_stop=False,  # under load mosec does not always stop
        ) as process,
    ):
        yield servers.Server(url, process.pid)


@contextlib.contextmanager
def _triton(environment: Environment, model: str, dtype: str) -> Iterator[servers.Server]:
    port = servers.free_port()
    release = environment.site_packages / "pytriton" / "tritonserver"
    variables = environment.variables()
    # The stub needs the release's libraries, and libpython.
    libraries = (str(environment.site_packages / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR"))
    variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (*libraries, os.environ.get("LD_LIBRARY_PATH"))))
    with tempfile.TemporaryDirectory() as folder, _log() as log:
        backends = _backends(release, Path(folder))
        options = {
            "model-repository": _repository(Path(folder), model, dtype),
            "backend-directory": backends,
            "http-address": "127.0.0.1",
            "http-port": port,
            "allow-grpc": "false",
            "allow-metrics": "false",
            "log-info": "false",
        }
        command = [str(release / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in options.items())]
        url = f"http://127.0.0.1:{port}"
        with servers.running(
            command,
            url + "/v2/health/ready",
            environment=variables,
            log=log,
            stop_s=_STOP_S,
            must_stop=False,
        ) as process:
            yield servers.Server(url, process.pid)


def _backends(release: Path, folder: Path) -> Path:
    """Return a folder of backends: Python's, with the stub for this version of Python.

    Raises:
        NotInstalled: There is no stub for it.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = release / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.exists():
        raise NotInstalled(f"this release of Triton does not run models on Python {python}.")
    backend = folder / "backends" / "python"
    shutil.copytree(release / "backends" / "python", backend)
    shutil.copy(stub, backend)
    return backend.parent


def _repository(folder: Path, model: str, dtype: str) -> Path:
    """Write a model repository: one instance per core, dynamic batching without delay."""
    version = folder / "models" / TRITON_MODEL / "1"
    version.mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / "baselines" / "triton_model.py", version / "model.py")
    tensors = "\n".join(
        f'{kind} [ {{ name: "{name}" data_type: {data_type} dims: [ {size} ] }} ]'
        for kind, name, data_type, size in (
            ("input", "image", "TYPE_STRING", 1),
            ("output", "label", "TYPE_STRING", -1),
            ("output", "confidence", "TYPE_FP32", -1),
        )
    )
    parameters = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in (("model", model), ("dtype", dtype))
    )
    (version.parent / "config.pbtxt").write_text(
        f'name: "{TRITON_MODEL}"\nbackend: "python"\nmax_batch_size: {_MAX_BATCH_SIZE}\n'
        "dynamic_batching { max_queue_delay_microseconds: 0 }\n"
        f"instance_group [ {{ count: {len(os.sched_getaffinity(0))} kind: KIND_CPU }} ]\n{tensors}\n{parameters}\n"
    )
    return folder / "models"


@contextlib.contextmanager
def _log() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "log"


def all_peers() -> tuple[Peer, ...]:
    """Return the other servers, except LitServe, which ours is built on."""
    return (
        Peer("Triton", Environment("triton"), "nvidia-pytriton", _triton),
        Peer("mosec", Environment("mosec"), "mosec", _mosec),
    )


def main() -> None:
    """Create the environment of each peer; exit with status 1 if one can't be created."""
    failures = []
    for peer in all_peers():
        try:
            peer.require(may_install=True)
            print(f"{peer.name}: {peer.version()}")
        except NotInstalled as error:
            failures.append(f"{peer.name}: {error}")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
