"""What NVML says, with the library played: no GPU, one that tells all, one that tells little, and several."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vit_api.web.operations import gpu_stats
from vit_api.web.operations.gpu_stats import GpuStats, read_gpu


class NvmlError(Exception):
    """Plays pynvml's own."""


class FakeNvml:
    """A driver with GPUs, each named by its UUID and its kind."""

    NVMLError = NvmlError

    def __init__(self, *gpus: tuple[str, str], silent: frozenset[str] = frozenset()) -> None:
        self._gpus = gpus
        self._silent = silent

    def nvmlInit(self) -> None:
        if not self._gpus:
            raise NvmlError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return self._gpus[index][0]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in dict(self._gpus):
            raise NvmlError("Not Found")
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetName(self, handle: str) -> str:
        return dict(self._gpus)[handle]

    def _tell(self, what: str, value: Any) -> Any:
        if what in self._silent:
            raise NvmlError("Not Supported")
        return value

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        index = [uuid for uuid, _ in self._gpus].index(handle)
        return self._tell("memory", SimpleNamespace(used=index, total=100))

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return self._tell("utilization", SimpleNamespace(gpu=87))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> Any:
        return self._tell("power", 312_500)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> Any:
        return self._tell("energy", 1_500)


_TWO = (("GPU-aa-1", "H200"), ("GPU-bb-2", "H200"))
_MIXED = (("GPU-aa-1", "T4"), ("GPU-bb-2", "H200"))


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    gpu_stats._nvml.cache_clear()
    yield
    gpu_stats._nvml.cache_clear()
    gpu_stats._handle.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, a share, watts and joules."""
    install(monkeypatch, FakeNvml(*_TWO))
    assert read_gpu("GPU-bb-2") == GpuStats(1, 100, 0.87, 312.5, 1.5)


@pytest.mark.parametrize("nvml", [None, FakeNvml()], ids=["no library", "no driver"])
def test_without_nvml_there_is_nothing(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> None:
    """And no exception."""
    install(monkeypatch, nvml)
    assert read_gpu("cuda:0") is None


@pytest.mark.parametrize("device", ["cpu", "", "GPU-cc-3", "cuda:2", "MIG-1"])
def test_a_device_that_nvml_does_not_know(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Nothing is said of it, least of all another GPU's figures."""
    install(monkeypatch, FakeNvml(*_TWO))
    assert read_gpu(device) is None


def test_what_is_not_supported_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MIG slice has no utilisation of its own; the rest is told. torch names it as a GPU."""
    silent = frozenset({"utilization", "power", "energy"})
    install(monkeypatch, FakeNvml(("MIG-aa-1", "H200"), silent=silent))
    assert read_gpu("GPU-aa-1") == GpuStats(0, 100, None, None, None)


@pytest.mark.parametrize(
    ("gpus", "visible", "order", "device", "index"),
    [
        pytest.param(_TWO, None, None, "cuda:1", 1, id="all are visible"),
        pytest.param(_TWO, None, None, "cuda", 0, id="no number"),
        pytest.param(_TWO, "1", None, "cuda:0", 1, id="by number"),
        pytest.param(_TWO, "GPU-bb-2,GPU-aa-1", None, "cuda:1", 0, id="by UUID"),
        pytest.param(_TWO, "GPU-bb", None, "cuda:0", 1, id="by the start of a UUID"),
        pytest.param(_TWO, "GPU-", None, "cuda:0", None, id="by what fits both"),
        pytest.param(_TWO, "", None, "cuda:0", None, id="none is visible"),
        pytest.param(_MIXED, "1", None, "cuda:0", None, id="of two kinds, by number: unknown"),
        pytest.param(_MIXED, "1", "PCI_BUS_ID", "cuda:0", 1, id="of two kinds, by the bus"),
        pytest.param(_MIXED, "GPU-bb-2", None, "cuda:0", 1, id="of two kinds, by UUID"),
    ],
)
def test_cudas_names_are_mapped(
    monkeypatch: pytest.MonkeyPatch,
    gpus: tuple[tuple[str, str], ...],
    visible: str | None,
    order: str | None,
    device: str,
    index: int | None,
) -> None:
    """As CUDA_VISIBLE_DEVICES says, and only where CUDA's order is known."""
    install(monkeypatch, FakeNvml(*gpus))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if order is not None:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    stats = read_gpu(device)
    assert (None if stats is None else stats.memory_used_bytes) == index
