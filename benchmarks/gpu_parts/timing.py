"""Times work on a device. The only module that knows the peak performance of GPUs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import torch

from benchmarks.gpu_parts.part import FLOP_PER_IMAGE

_CALLS_BETWEEN_LOOKS = 5

_PEAK_TFLOPS = {
    "H200 NVL": {"float16": 835.5, "bfloat16": 835.5, "float32": 60.0},
    "H200": {"float16": 989.4, "bfloat16": 989.4, "float32": 66.9},
    "H100 NVL": {"float16": 835.5, "bfloat16": 835.5, "float32": 60.0},
    "H100 PCIe": {"float16": 756.0, "bfloat16": 756.0, "float32": 51.2},
    "H100": {"float16": 989.4, "bfloat16": 989.4, "float32": 66.9},
    "A100": {"float16": 312.0, "bfloat16": 312.0, "float32": 19.5},
    "L40S": {"float16": 362.0, "bfloat16": 362.0, "float32": 91.6},
    "L4": {"float16": 121.0, "bfloat16": 121.0, "float32": 30.3},
    "T4": {"float16": 65.0, "float32": 8.1},
}
"""Dense matrix products according to NVIDIA's data sheets, float32 without TF32. The first match counts."""


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the seconds per call of back-to-back calls, measured over about `seconds`.

    Includes Python's launch overhead where that takes longer than the device.
    """
    for _ in range(_CALLS_BETWEEN_LOOKS):
        call()
    synchronize(device)
    calls, start = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - start) < seconds:
        for _ in range(_CALLS_BETWEEN_LOOKS):
            call()
        synchronize(device)
        calls += _CALLS_BETWEEN_LOOKS
    return elapsed_s / calls


def peak_tflops(device_name: str, dtype: str) -> float | None:
    """Return a GPU's peak for matrix products, or None if it is not in the table."""
    words = set(re.split(r"[\s-]", device_name))  # "NVIDIA A100-SXM4-80GB", "NVIDIA H100 PCIe"
    for name, peaks in _PEAK_TFLOPS.items():
        if words.issuperset(name.split()):
            return peaks.get(dtype)
    return None


def share_of_peak(images_per_s: float, device_name: str, dtype: str) -> float | None:
    """Return the share of the GPU's peak that a ViT-B/16 reaches, or None if the peak is unknown."""
    peak = peak_tflops(device_name, dtype)
    return None if peak is None else round(images_per_s * FLOP_PER_IMAGE / (peak * 1e12), 4)
