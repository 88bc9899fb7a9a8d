"""The mapping of CUDA's device numbers to GPUs, with a fake NVML."""

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
def test_without_nvml_the_uuid_is_none(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> None:
    """A missing library or driver raises nothing."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert uuid_of("cuda:0") is None


@pytest.mark.parametrize("device", ["cpu", "", "cuda:2"])
def test_an_unknown_device_has_no_uuid(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """It does not get another GPU's UUID either."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*TWO_GPUS))
    assert uuid_of(device) is None


@pytest.mark.parametrize(
    ("gpus", "visible", "order", "device", "uuid"),
    [
        pytest.param(TWO_GPUS, None, None, "cuda:1", "GPU-bb-2", id="all visible"),
        pytest.param(TWO_GPUS, None, None, "cuda", "GPU-aa-1", id="no number"),
        pytest.param(TWO_GPUS, "1", None, "cuda:0", "GPU-bb-2", id="by number"),
        pytest.param(TWO_GPUS, "1", None, "cuda:1", None, id="number out of range"),
        pytest.param(TWO_GPUS, "GPU-bb-2,GPU-aa-1", None, "cuda:1", "GPU-aa-1", id="by UUID"),
        pytest.param(TWO_GPUS, "GPU-bb", None, "cuda:0", "GPU-bb-2", id="by UUID prefix"),
        pytest.param(TWO_GPUS, "GPU-", None, "cuda:0", None, id="ambiguous prefix"),
        pytest.param(TWO_GPUS, "GPU-cc-3", None, "cuda:0", None, id="unknown UUID"),
        pytest.param(TWO_GPUS, "MIG-aa-1", None, "cuda:0", "MIG-aa-1", id="MIG slice"),
        pytest.param(TWO_GPUS, "", None, "cuda:0", None, id="none visible"),
        pytest.param(_MIXED, "1", None, "cuda:0", None, id="two models, by number: unknown"),
        pytest.param(_MIXED, "1", "PCI_BUS_ID", "cuda:0", "GPU-bb-2", id="two models, by bus id"),
        pytest.param(_MIXED, "GPU-bb-2", None, "cuda:0", "GPU-bb-2", id="two models, by UUID"),
    ],
)
def test_uuid_of_a_device_number(
    monkeypatch: pytest.MonkeyPatch,
    gpus: tuple[tuple[str, str], ...],
    visible: str | None,
    order: str | None,
    device: str,
    uuid: str | None,
) -> None:
    """Numbers follow CUDA_VISIBLE_DEVICES, and are resolved only if CUDA's order is known."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*gpus))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if order is not None:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    assert uuid_of(device) == uuid
