"""Maps CUDA's device numbers to GPUs without using CUDA, which would allocate memory on the GPU."""

from __future__ import annotations

import os
from typing import Any


def uuid_of(device: str) -> str | None:
    """Return the UUID of the GPU or MIG slice that torch calls `cuda:N`, or None if it is unknown.

    `CUDA_VISIBLE_DEVICES` lists the visible ones in CUDA's order, by number or by UUID, which may be abbreviated.
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
    """Return the UUID of the GPU that has this number when CUDA sees all; None if it is unknown.

    NVML orders GPUs by PCI bus. So does CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID. By default it puts the fastest first,
    which is the same order only if all are of the same model.
    """
    is_by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    is_one_kind = len({name for _, name in gpus}) == 1
    return gpus[number][0] if number < len(gpus) and (is_by_bus or is_one_kind) else None


def _by_first_part(gpus: list[tuple[str, str]], name: str) -> str | None:
    """Return the only UUID with this prefix; a MIG slice, which NVML does not list, must have its full UUID."""
    if name.startswith("MIG-"):
        return name
    matching = [uuid for uuid, _ in gpus if uuid.startswith(name)]
    return matching[0] if name and len(matching) == 1 else None


def _gpus() -> list[tuple[str, str]]:
    """Return the UUID and the name of each GPU in NVML's order; none without a driver."""
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
