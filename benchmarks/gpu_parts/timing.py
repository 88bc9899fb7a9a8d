"""Times work on a device. The only module that knows the peak performance of GPUs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import torch

from benchmarks.gpu_parts.part import FLOP_PER_IMAGE

_CALLS_BETWEEN_LOOKS = 5

_PEAK_TFLOPS = {
    "H200 NVL": {"float16": 835.5, "bfloat16": 835.5, "float32": 60.0, "int8": 1671.0, "fp8": 1671.0},
    "H200": {"float16": 989.4, "bfloat16": 989.4, "float32": 66.9, "int8": 1978.9, "fp8": 1978.9},
    "H100 NVL": {"float16": 835.5, "bfloat16": 835.5, "float32": 60.0, "int8": 1671.0, "fp8": 1671.0},
    "H100 PCIe": {"float16": 756.0, "bfloat16": 756.0, "float32": 51.2, "int8": 1513.0, "fp8": 1513.0},
    "H100": {"float16": 989.4, "bfloat16": 989.4, "float32": 66.9, "int8": 1978.9, "fp8": 1978.9},
    "A10G": {"float16": 70.0, "bfloat16": 70.0, "float32": 35.0, "int8": 140.0},
    "A10": {"float16": 125.0, "bfloat16": 125.0, "float32": 31.2, "int8": 250.0},
    "A100": {"float16": 312.0, "bfloat16": 312.0, "float32": 19.5, "int8": 624.0},
    "L40S": {"float16": 362.0, "bfloat16": 362.0, "float32": 91.6, "int8": 733.0, "fp8": 733.0},
    "L4": {"float16": 121.0, "bfloat16": 121.0, "float32": 30.3, "int8": 242.0, "fp8": 242.0},
    "T4": {"float16": 65.0, "float32": 8.1, "int8": 130.0},
}
"""TFLOP/s of dense matrix products in NVIDIA's data sheets, float32 without TF32, int8 in TOP/s. The first match
counts."""


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(call: Callable[[], object], device: torch.device, seconds: float, warm_up_s: float = 0.0) -> float:
    """Return the seconds per call of back-to-back calls, measured over about `seconds`.

    Includes Python's launch overhead where that takes longer than the device.

    Args:
        call: The function to time.
        device: The device that it runs on.
        seconds: The duration of the measurement.
        warm_up_s: The warm-up before it. An idle GPU takes most of a second to raise its clocks, and one with a low
            power limit lowers them again under load.
    """
    _run(call, device, warm_up_s)
    calls, elapsed_s = _run(call, device, seconds)
    return elapsed_s / calls


def _run(call: Callable[[], object], device: torch.device, seconds: float) -> tuple[int, float]:
    """Repeat a call for about this long, at least a few times; return the number of calls and the seconds."""
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < seconds:
        for _ in range(_CALLS_BETWEEN_LOOKS):
            call()
        synchronize(device)
        calls += _CALLS_BETWEEN_LOOKS
    return calls, time.perf_counter() - start


@torch.inference_mode()
def measured_tflops(device: torch.device, dtype: torch.dtype, seconds: float, side: int) -> float:
    """Return the TFLOP/s of a large square matrix product: what this GPU reaches at its power limit."""
    factors = torch.randn((2, side, side), dtype=dtype, device=device)
    out = torch.empty((side, side), dtype=dtype, device=device)
    each_s = seconds_per_call(lambda: torch.mm(factors[0], factors[1], out=out), device, seconds, seconds)
    return float(f"{2 * side**3 / each_s / 1e12:.4g}")


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
