"""The image that all tests of this folder share, and a report of the measurements."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import machine
from tests.container.engine import PROGRAMS, Container, Engine, serve

IMAGE = "localhost/vit-api"

_measured: dict[str, Any] = {}


@pytest.fixture(scope="session")
def measured() -> dict[str, Any]:
    """The measurements for the report, by name."""
    return _measured


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Buildah and podman with an empty storage, which is removed at the end."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        pytest.skip(f"needs Debian's packages {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root: mmdebstrap and buildah change roots")
    folder = Path(tempfile.mkdtemp(prefix="vit-api-container-"))
    engine = Engine(folder)
    try:
        yield engine
    finally:
        engine.remove()


@pytest.fixture(scope="session")
def image(engine: Engine, measured: dict[str, Any]) -> str:
    """Build the Dockerfile and return the image's name."""
    start = time.monotonic()
    engine.make_base()
    base_made = time.monotonic()
    engine.build(IMAGE)
    measured["base_s"] = round(base_made - start, 1)
    measured["build_s"] = round(time.monotonic() - base_made, 1)
    return IMAGE


@pytest.fixture(scope="session")
def digits(engine: Engine, image: str, measured: dict[str, Any]) -> Iterator[Container]:
    """A container that serves the embedded model."""
    with serve(engine, image, VIT_API_MODEL="digits") as container:
        measured["ready_s"] = round(container.ready_after_s, 1)
        yield container


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--container-report", metavar="FILE", type=Path, help="write the measurements as JSON")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the measurements, and write them to a file if requested."""
    if not _measured:
        return
    report = json.dumps({"machine": machine.describe(), **_measured}, indent=2)
    terminalreporter.section("container")
    terminalreporter.write_line(report)
    if path := config.getoption("--container-report"):
        path.write_text(report + "\n")
