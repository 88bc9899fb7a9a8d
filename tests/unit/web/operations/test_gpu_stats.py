"""GPU statistics with a fake NVML: no GPU, one that reports everything, one that reports little, and several."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fake_nvml import TWO_GPUS, FakeNvml
from vit_api.web.operations import gpu_stats
from vit_api.web.operations.gpu_stats import GpuStats, read_gpu


@pytest.fixture(autouse=True)
def _clear_caches() -> Iterator[None]:
    gpu_stats._nvml.cache_clear()
    yield
    gpu_stats._nvml.cache_clear()
    gpu_stats._handle.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are in bytes, a ratio, watts and joules."""
    install(monkeypatch, FakeNvml(*TWO_GPUS))
    assert read_gpu("GPU-bb-2") == GpuStats(1, 100, 0.87, 312.5, 1.5)


@pytest.mark.parametrize("nvml", [pytest.param(None, id="no library"), pytest.param(FakeNvml(), id="no driver")])
def test_without_nvml_there_are_no_statistics(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> None:
    """A missing library or driver raises nothing."""
    install(monkeypatch, nvml)
    assert read_gpu("GPU-aa-1") is None


@pytest.mark.parametrize("device", ["cpu", "", "GPU-cc-3", "GPU-aa", "cuda:0", "MIG-1"])
def test_an_unknown_device_has_no_statistics(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """It does not get another GPU's statistics either."""
    install(monkeypatch, FakeNvml(*TWO_GPUS))
    assert read_gpu(device) is None


def test_unsupported_values_are_omitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MIG slice, which torch names like a GPU, reports no utilisation; the other values are reported."""
    silent = frozenset({"utilization", "power", "energy"})
    install(monkeypatch, FakeNvml(("MIG-aa-1", "H200"), silent=silent))
    assert read_gpu("GPU-aa-1") == GpuStats(0, 100, None, None, None)
