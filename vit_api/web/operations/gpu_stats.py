"""Reads a GPU's figures from NVIDIA's management library (NVML). Knows nothing of models or CUDA.

Needs no torch, and takes no memory on the GPU.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuStats:
    """A GPU's current figures. None means that the GPU does not report it, such as the utilisation of a MIG slice.

    Attributes:
        memory_used_bytes: Used by all processes.
        memory_total_bytes: The GPU's memory.
        utilization_ratio: 0 to 1, the share of the last sampling period in which a kernel ran.
        power_watts: Current power draw.
        energy_joules: Energy used since the driver was loaded.
    """

    memory_used_bytes: int | None
    memory_total_bytes: int | None
    utilization_ratio: float | None
    power_watts: float | None
    energy_joules: float | None


def read_gpu(uuid: str) -> GpuStats | None:
    """Return a GPU's current figures, or None where there is no NVML or no such GPU. Takes up to some milliseconds.

    Args:
        uuid: The GPU's or MIG slice's UUID, as in `WorkerStatus.device_uuid`.
    """
    nvml = _nvml()
    handle = None if nvml is None else _handle(nvml, uuid)
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
    """Return the initialised library; None without a driver. Cached, since a driver does not appear or disappear."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except ImportError:
        return None
    except pynvml.NVMLError as error:
        logger.debug("GPU figures are not available: %s", error)
        return None
    return pynvml


def _ask(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """Return the answer, or None if the GPU does not support the question, as MIG slices and older GPUs may not."""
    try:
        return question(*arguments)
    except nvml.NVMLError as error:
        logger.debug("%s: %s", question, error)
        return None


@functools.cache
def _handle(nvml: Any, uuid: str) -> Any:
    """Return the library's handle of a GPU or MIG slice, or None. torch may name a slice as a GPU."""
    for name in (uuid, uuid.replace("GPU-", "MIG-", 1)):
        handle = _ask(nvml, nvml.nvmlDeviceGetHandleByUUID, name)
        if handle is not None:
            return handle
    return None
