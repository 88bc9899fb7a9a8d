"""Which GPU CUDA calls by a number, with NVML faked."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from benchmarks.gpu_parts.cuda_order import uuid_of
from tests.support.fake_nvml import TWO_GPUS, FakeNvml

_MIXED = (("GPU-aa-1", "T4"), ("GPU-bb-2", "H200"))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("nvml", [pytest.param(None, id="no library"), pytest.param(FakeNvml(), id="no driver")])
def test_without_nvml_there_is_none(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> None:
    """And no exception."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert uuid_of("cuda:0") is None


@pytest.mark.parametrize("device", ["cpu", "", "cuda:2"])
def test_a_device_that_nvml_does_not_know(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """It has no UUID, least of all another GPU's."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*TWO_GPUS))
    assert uuid_of(device) is None


@pytest.mark.parametrize(
    ("gpus", "visible", "order", "device", "uuid"),
    [
        pytest.param(TWO_GPUS, None, None, "cuda:1", "GPU-bb-2", id="all are visible"),
        pytest.param(TWO_GPUS, None, None, "cuda", "GPU-aa-1", id="no number"),
        pytest.param(TWO_GPUS, "1", None, "cuda:0", "GPU-bb-2", id="by number"),
        pytest.param(TWO_GPUS, "1", None, "cuda:1", None, id="more than are visible"),
        pytest.param(TWO_GPUS, "GPU-bb-2,GPU-aa-1", None, "cuda:1", "GPU-aa-1", id="by UUID"),
        pytest.param(TWO_GPUS, "GPU-bb", None, "cuda:0", "GPU-bb-2", id="by the start of a UUID"),
        pytest.param(TWO_GPUS, "GPU-", None, "cuda:0", None, id="by what fits both"),
        pytest.param(TWO_GPUS, "GPU-cc-3", None, "cuda:0", None, id="by what fits none"),
        pytest.param(TWO_GPUS, "MIG-aa-1", None, "cuda:0", "MIG-aa-1", id="a MIG slice"),
        pytest.param(TWO_GPUS, "", None, "cuda:0", None, id="none is visible"),
        pytest.param(_MIXED, "1", None, "cuda:0", None, id="of two kinds, by number: unknown"),
        pytest.param(_MIXED, "1", "PCI_BUS_ID", "cuda:0", "GPU-bb-2", id="of two kinds, by the bus"),
        pytest.param(_MIXED, "GPU-bb-2", None, "cuda:0", "GPU-bb-2", id="of two kinds, by UUID"),
    ],
)
def test_cudas_numbers(
    monkeypatch: pytest.MonkeyPatch,
    gpus: tuple[tuple[str, str], ...],
    visible: str | None,
    order: str | None,
    device: str,
    uuid: str | None,
) -> None:
    """They follow CUDA_VISIBLE_DEVICES, and are known only where CUDA's order is."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*gpus))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if order is not None:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    assert uuid_of(device) == uuid
