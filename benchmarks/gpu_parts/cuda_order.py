"""Finds the GPU that CUDA calls by a number, without CUDA: no memory on the GPU is taken."""

from __future__ import annotations

import os
from typing import Any


def uuid_of(device: str) -> str | None:
    """Return the UUID of the GPU or MIG slice that torch calls `cuda:N`, or None if that cannot be told.

    `CUDA_VISIBLE_DEVICES` has the visible ones in CUDA's order, by number or UUID; a GPU's UUID may be cut short.
    """
    kind, _, number = device.partition(":")
    gpus = _gpus() if kind == "cuda" else []
    if not gpus:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _in_cudas_order(gpus, int(number or 0))
    names = [name.strip() for name in visible.split(",")]
    if int(number or 0) >= len(names):
        return None
    name = names[int(number or 0)]
    return _in_cudas_order(gpus, int(name)) if name.isdecimal() else _by_first_part(gpus, name)


def _in_cudas_order(gpus: list[tuple[str, str]], number: int) -> str | None:
    """Return the UUID of the GPU that has this number when CUDA sees all; None if that cannot be told.

    NVML orders GPUs by PCI bus. So does CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID. By default it puts the fastest first,
    which is the same order only if all are of one kind.
    """
    is_by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    is_one_kind = len({name for _, name in gpus}) == 1
    return gpus[number][0] if number < len(gpus) and (is_by_bus or is_one_kind) else None


def _by_first_part(gpus: list[tuple[str, str]], name: str) -> str | None:
    """Return the one UUID that begins like this; a MIG slice, which is not among the GPUs, has its whole UUID."""
    if name.startswith("MIG-"):
        return name
    matching = [uuid for uuid, _ in gpus if uuid.startswith(name)]
    return matching[0] if name and len(matching) == 1 else None


def _gpus() -> list[tuple[str, str]]:
    """Return the UUID and the name of each GPU, in NVML's order; none where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return []
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [(str(nvml.nvmlDeviceGetUUID(handle)), str(nvml.nvmlDeviceGetName(handle))) for handle in handles]
    except nvml.NVMLError:
        return []
