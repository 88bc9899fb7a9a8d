"""Creates a virtual environment for each other server that ours is compared with, and keeps it between runs.

An environment has only the peer's own packages, as `requirements-peers-NAME.txt` pins them. Torch, transformers, NumPy
and Pillow come from the environment that runs the benchmark, so that all servers compute with the same builds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from benchmarks.harness.machine import ROOT

_FOLDER = ROOT / ".venv-peers"
_INSTALL_S = 600
_PIP_OPTIONS = ("--no-deps", "--only-binary=:all:")
_COMPLETE = "complete"
_OF_AN_ENVIRONMENT = ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")


class NotInstalled(Exception):
    """A peer can't run here; the message says why, and what to do."""


@dataclass(frozen=True)
class Environment:
    """The virtual environment of one peer.

    Attributes:
        name: The peer's name, which is part of its requirements file's name.
        root: The folder with `requirements-peers-NAME.txt`.
        folder: The folder with the environments of all peers.
    """

    name: str
    root: Path = ROOT
    folder: Path = _FOLDER

    @property
    def requirements(self) -> Path:
        """The file that pins the peer's packages."""
        return self.root / f"requirements-peers-{self.name}.txt"

    @property
    def path(self) -> Path:
        """Its folder, which depends on the pins and the version of Python."""
        made_of = self.requirements.read_bytes() + f"{_packages()} {platform.python_version()}".encode()
        return self.folder / f"{self.name}-{hashlib.sha256(made_of).hexdigest()[:12]}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """The folder of its packages."""
        return Path(sysconfig.get_path("purelib", "venv", {"base": str(self.path), "installed_base": str(self.path)}))

    def is_installed(self) -> bool:
        """Return whether it is complete."""
        return (self.path / _COMPLETE).exists()

    def install(self) -> None:
        """Create it unless it is complete.

        Raises:
            NotInstalled: pip failed.
        """
        self.folder.mkdir(exist_ok=True)
        with _lock(self.folder / f"{self.name}.lock"):
            if self.is_installed():
                return
            for older in self.folder.glob(f"{self.name}-*"):
                shutil.rmtree(older)
            # This environment's pip installs there, since one of its own would take longer to create than all the rest.
            self._run(sys.executable, "-m", "venv", "--without-pip", str(self.path))
            pip = (sys.executable, "-m", "pip", "--python", str(self.python))
            self._run(*pip, "install", *_PIP_OPTIONS, "--requirement", str(self.requirements))
            (self.site_packages / "benchmark.pth").write_text("".join(f"{path}\n" for path in _packages()))
            (self.path / _COMPLETE).touch()

    def _run(self, *command: str) -> None:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
        if result.returncode:
            *_, last = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
            raise NotInstalled(f"{self.requirements.name} can't be installed: {last}")

    def version(self, package: str) -> str:
        """Return the version of one of its packages."""
        found = (each.version for each in distributions(name=package, path=[str(self.site_packages)]))
        return next(found, "unknown")

    def variables(self) -> dict[str, str]:
        """Return the environment variables of its processes, whose `python3` is the one of this environment."""
        inherited = {name: value for name, value in os.environ.items() if name not in _OF_AN_ENVIRONMENT}
        return inherited | {"PATH": os.pathsep.join((str(self.python.parent), os.environ.get("PATH", os.defpath)))}


def _packages() -> list[str]:
    """Return what a peer imports apart from its own packages: this repository, and what the benchmark runs on.

    A path file has them, and not PYTHONPATH: the interpreter inside Triton reads no environment variables.
    """
    return list(dict.fromkeys((str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))))


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Let one process at a time create an environment."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
