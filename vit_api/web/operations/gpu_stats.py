"""What NVIDIA's management library (NVML) says of a GPU; nothing where there is none. Knows nothing of models or CUDA.

A process may call this without torch, and without taking memory on the GPU.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuStats:
    """What a GPU does now. None stands for what this GPU does not tell, such as the utilisation of a MIG slice.

    Attributes:
        memory_used_bytes: By all processes.
        memory_total_bytes: That there are.
        utilization_ratio: 0 to 1, the share of the last fraction of a second in which a kernel ran.
        power_watts: Drawn now.
        energy_joules: Used since the driver was loaded.
    """

    memory_used_bytes: int | None
    memory_total_bytes: int | None
    utilization_ratio: float | None
    power_watts: float | None
    energy_joules: float | None


def read_gpu(device: str) -> GpuStats | None:
    """Return what a GPU does now, or None where there is no NVML or no such GPU. Takes up to some milliseconds.

    Args:
        device: Its UUID, as in `WorkerStatus.device_uuid`, or as torch names it, `cuda:0`. With that, on a machine with
            several kinds of GPUs, None is returned too if CUDA's order of the GPUs can't be told from outside CUDA.
    """
    nvml = _nvml()
    handle = None if nvml is None else _handle(nvml, device)
    if nvml is None or handle is None:
        return None
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    rates = _ask(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    milliwatts = _ask(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    millijoules = _ask(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return GpuStats(
        memory_used_bytes=None if memory is None else int(memory.used),
        memory_total_bytes=None if memory is None else int(memory.total),
        utilization_ratio=None if rates is None else rates.gpu / 100,
        power_watts=None if milliwatts is None else milliwatts / 1000,
        energy_joules=None if millijoules is None else millijoules / 1000,
    )


@functools.cache
def _nvml() -> Any:
    """Return the library, ready; None where there is no driver. Asked once in a process: drivers don't come and go."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return None
    except pynvml.NVMLError as error:
        logger.debug("no figures of GPUs: %s", error)
        return None
    return pynvml


def _ask(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """Return the answer, or None if there is none: a MIG slice and an older GPU don't support everything."""
    try:
        return question(*arguments)
    except nvml.NVMLError as error:
        logger.debug("%s: %s", question, error)
        return None


@functools.cache
def _handle(nvml: Any, device: str) -> Any:
    """Return the library's handle of a GPU, or None."""
    kind, _, number = device.partition(":")
    if kind == "cuda":
        return _handle_by_number(nvml, int(number or 0))
    return _handle_by_uuid(nvml, device)


def _handle_by_number(nvml: Any, number: int) -> Any:
    """Return the handle of the GPU that CUDA has at this place among those that it may see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _handle_in_cudas_order(nvml, number)
    names = [name.strip() for name in visible.split(",")]
    if number >= len(names):
        return None
    name = names[number]
    return _handle_in_cudas_order(nvml, int(name)) if name.isdecimal() else _handle_by_uuid(nvml, name)


def _handle_in_cudas_order(nvml: Any, number: int) -> Any:
    """Return the handle of the GPU that has this number when CUDA sees all; None if that can't be told.

    NVML counts by the PCI bus. So does CUDA if CUDA_DEVICE_ORDER says so; by itself it puts the fastest first, which
    comes to the same if all are of one kind.
    """
    count = _ask(nvml, nvml.nvmlDeviceGetCount) or 0
    handles = [_ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
    kinds = {_ask(nvml, nvml.nvmlDeviceGetName, handle) for handle in handles if handle is not None}
    is_by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return handles[number] if number < count and (is_by_bus or len(kinds) == 1) else None


def _handle_by_uuid(nvml: Any, uuid: str) -> Any:
    """Return the handle of a GPU or MIG slice; a slice may be named as a GPU, and a GPU by its UUID's first part."""
    for name in (uuid, uuid.replace("GPU-", "MIG-", 1)):
        handle = _ask(nvml, nvml.nvmlDeviceGetHandleByUUID, name)
        if handle is not None:
            return handle
    count = _ask(nvml, nvml.nvmlDeviceGetCount) or 0
    handles = [_ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
    matching = [
        handle
        for handle in handles
        if handle is not None and str(_ask(nvml, nvml.nvmlDeviceGetUUID, handle)).startswith(uuid)
    ]
    return matching[0] if uuid.startswith("GPU-") and len(matching) == 1 else None
