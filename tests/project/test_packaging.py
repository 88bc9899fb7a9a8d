"""`pip install .`: the wheel's files, the client without the server, and errors for missing packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.server import ROOT

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_PINNED = {
    "server": "requirements.txt",
    "timm": "requirements-timm.txt",
    "otel": "requirements-otel.txt",
    "load": "requirements-load.txt",
    "bench": "requirements-bench.txt",
    "ray": "requirements-ray.txt",
    "openvino": "requirements-openvino.txt",
}


def _pins(file: str) -> dict[str, Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return {pin.name: pin for pin in map(Requirement, filter(re.compile(r"^\w").match, lines))}


def _run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # With the checkout on its path, an environment would have two versions of the package.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with the installed hatchling."""
    folder = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    built = _run(*command, cwd=folder)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def client_environment(wheel: Path) -> Path:
    """Install the wheel with the extra `client` in a new virtual environment; return its folder of commands."""
    folder = wheel.parent / "venv"
    venv.create(folder)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    installed = _run(*pip, "install", f"{wheel}[client]", cwd=wheel.parent)
    assert installed.returncode == 0, installed.stderr
    return folder / "bin"


def test_the_wheel_has_the_tracked_files(wheel: Path) -> None:
    """Code, page, embedded model and py.typed are packed, and no untracked file."""
    listed = _run("git", "ls-files", "--cached", "vit_api", cwd=ROOT).stdout.split()
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == set(listed)
    assert {"vit_api/py.typed", "vit_api/checkpoints/digits/model.safetensors"} <= packed
    assert "vit_api/web/page/static/index.html" in packed


def test_the_wheel_has_the_license(wheel: Path) -> None:
    """The metadata has the SPDX expression, and the file is packed."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        assert "\nLicense-Expression: Apache-2.0\n" in archive.read(metadata).decode()
        (text,) = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        assert "SPDX-License-Identifier: Apache-2.0" in archive.read(text).decode()


def test_the_client_needs_nothing_of_the_server(client_environment: Path) -> None:
    """It can be imported with only httpx and its dependencies installed."""
    program = "import sys, vit_api.client; print(*{name.partition('.')[0] for name in sys.modules})"
    result = _run(client_environment / "python", "-c", program, cwd=client_environment)
    assert result.returncode == 0, result.stderr
    assert "httpx" in result.stdout.split()
    listed = _run(sys.executable, "-m", "pip", "--python", client_environment / "python", "freeze", cwd=ROOT).stdout
    names = {re.split("[ =]", line)[0] for line in listed.splitlines()}
    assert {"httpx", "vit_api"} <= {name.replace("-", "_") for name in names}
    server = {Requirement(text).name for text in _PROJECT["optional-dependencies"]["server"]} - {"vit-api", "anyio"}
    assert names & server == set()


def test_the_command_is_installed(client_environment: Path) -> None:
    """Its help lists the subcommands."""
    result = _run(client_environment / "vit-api", "--help", cwd=client_environment)
    assert result.returncode == 0, result.stderr
    assert {"classify", "serve", "quantize", "load", "bench", "models"} <= set(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        pytest.param(["serve"], "server", id="serve"),
        pytest.param(["classify", "x.png"], "server", id="classify"),
        pytest.param(["load"], "load", id="load"),
    ],
)
def test_a_missing_package_is_named(client_environment: Path, arguments: list[str], extra: str) -> None:
    """The error is a single line that says what to install, not a traceback."""
    result = _run(client_environment / "vit-api", *arguments, cwd=client_environment)
    assert result.returncode == 1
    assert re.fullmatch(
        r"error: The package \w+ is not installed\. Install what this command needs: "
        rf"pip install 'vit-api\[{extra}\]'\n",
        result.stderr,
    )


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["-m", "vit_api", "classify", "x.png"], id="classify"),
        pytest.param(["-m", "vit_api", "serve"], id="serve"),
        pytest.param(["server.py"], id="server.py"),
    ],
)
def test_a_missing_package_in_a_checkout_is_named(command: list[str]) -> None:
    """The error does not suggest `pip install vit-api`, which would look in the package index."""
    result = _run(sys.executable, "-S", *command, cwd=ROOT)
    assert result.returncode == 1
    assert re.fullmatch(r"error: The package \w+ is not installed\. In a checkout, .*\n", result.stderr)


@pytest.mark.parametrize(("extra", "file"), [pytest.param(*item, id=item[0]) for item in _PINNED.items()])
def test_pins_are_within_the_ranges_of_the_extras(extra: str, file: str) -> None:
    """The tested version of each package is one that the extra allows."""
    pins = _pins(file)
    texts = [text for text in _PROJECT["optional-dependencies"][extra] if not text.startswith("vit-api[")]
    texts += _PROJECT["optional-dependencies"]["client"] if extra == "server" else []
    ranges = {wanted.name: wanted for wanted in map(Requirement, texts)}
    pins |= {
        name: _pins("requirements.txt")[name] for name in ranges.keys() - pins if extra == "load"
    }  # it is installed, too
    assert pins.keys() == ranges.keys()
    for name, pin in pins.items():
        ((_, version),) = [(specifier.operator, specifier.version) for specifier in pin.specifier]
        assert ranges[name].specifier.contains(version), name
        assert ranges[name].extras == pin.extras, name
