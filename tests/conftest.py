"""Fixtures shared by several test modules."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest

from scripts.train_digits import load_split, scan_to_image
from tests.support.samples import encode
from tests.support.server import RunningServer, serve

# A deadline for each example would be a timing assertion, which fails on a busy machine.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture
def anyio_backend() -> str:
    """Run coroutine tests on asyncio only, like the server."""
    return "asyncio"


@pytest.fixture(scope="session")
def digits_server() -> Iterator[RunningServer]:
    """Run the embedded model with the default settings."""
    with serve() as server:
        yield server


@pytest.fixture(scope="session")
def held_out() -> list[tuple[bytes, str]]:
    """Return the digits held out from training as PNG uploads, with their labels."""
    split = load_split()
    return [
        (encode(scan_to_image(scan), "PNG"), str(label))
        for scan, label in zip(split.held_out_scans, split.held_out_labels, strict=True)
    ]


@pytest.fixture
def noise() -> np.random.Generator:
    """Return a seeded random generator."""
    return np.random.default_rng(0)
