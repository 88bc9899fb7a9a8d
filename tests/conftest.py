"""Fixtures shared by several test modules."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator

import hypothesis
import numpy as np
import pytest

from tests.support.samples import encode
from tests.support.server import ROOT, RunningServer, serve
from vit_api.environment.garbage import collection_paused

_LONGEST = (
    "tests/e2e/test_live_models.py",
    "tests/benchmarks/test_benchmark_gpu.py",
    "tests/benchmarks/test_benchmarks.py",
    "tests/benchmarks/test_compare.py",
    "tests/unit/classify/test_bulk.py",
    "tests/unit/decoding/test_hostile_images.py",
    "tests/project/test_docs_examples.py",
    "tests/e2e/test_door.py",
    "tests/e2e/test_faults.py",
    "tests/deploy/test_proxies.py",
    "tests/e2e/test_start.py",
    "tests/e2e/test_openapi.py",
    "tests/deploy/test_ray_serve.py",
    "tests/project/test_first_model_docs.py",
    "tests/deploy/test_systemd.py",
    "tests/unit/model/test_engines.py",
    "tests/e2e/test_fairness.py",
    "tests/e2e/test_load.py",
    "tests/e2e/test_memory.py",
    "tests/e2e/test_lifecycle.py",
    "tests/unit/checkpoints/test_hub.py",
    "tests/e2e/test_answers.py",
)
"""The files that take longest. They come first, so that the processes that run the suite finish at the same time."""


# A deadline for each example would be a timing assertion, which fails on a busy machine.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while tests are collected: it takes a third of that time, and what is made then stays.

    While they run, it is collected less often than by default: a process of the suite has memory to spare.
    """
    with collection_paused():
        result = yield
        gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first; the order within a file stays."""
    missing = [name for name in _LONGEST if not (ROOT / name).is_file()]
    if missing:
        raise pytest.UsageError(f"tests/conftest.py names files that do not exist: {', '.join(missing)}")
    rank = {str(ROOT / name): number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(str(item.path), len(rank)))


@pytest.fixture
def anyio_backend() -> str:
    """Run coroutine tests on asyncio only, like the server."""
    return "asyncio"


@pytest.fixture(scope="session")
def digits_server() -> Iterator[RunningServer]:
    """Run the embedded model with the default settings, in a new interpreter, as in production."""
    with serve(is_fresh=True) as server:
        yield server


@pytest.fixture(scope="session")
def held_out() -> list[tuple[bytes, str]]:
    """Return the digits held out from training as PNG uploads, with their labels."""
    from scripts.train_digits import load_split, scan_to_image  # not at the top: it imports torch and scikit-learn

    split = load_split()
    return [
        (encode(scan_to_image(scan), "PNG"), str(label))
        for scan, label in zip(split.held_out_scans, split.held_out_labels, strict=True)
    ]


@pytest.fixture
def noise() -> np.random.Generator:
    """Return a seeded random generator."""
    return np.random.default_rng(0)
