"""Reports as JSON which CUDA devices torch can compute on, and why it can't on others. Must not know the server.

`devices` runs this file in a process of its own: the main process must neither import torch nor initialise CUDA before
it forks. Only CUDA itself knows what `CUDA_VISIBLE_DEVICES` selects (numbers, UUIDs, MIG slices), and only a
calculation shows that driver, torch and GPU fit each other.
"""

from __future__ import annotations

import ctypes
import json
import os
import warnings
from typing import Any

import torch


def report() -> dict[str, Any]:
    """Return the report of torch and the driver.

    Returns:
        `torch`: its version. `cuda`: the CUDA version that it was built for, or None. `has_library`: whether there is
        the driver's library for CUDA. `driver`: the driver's version according to NVML, or None. `driver_gpus`: the
        GPUs that NVML lists, whichever are visible. `problem`: why CUDA can't be used at all, or None. `gpus`: for each
        visible device its `name` and its `problem`, or None.
    """
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "problem": None, "gpus": []}
    found |= {"has_library": _has_library()} | _driver()
    try:
        # It raises the reason; is_available() only warns. Before it, device_count() asks NVML, which may disagree.
        torch.cuda.init()  # type: ignore[no-untyped-call]
        found["gpus"] = [_gpu(number) for number in range(torch.cuda.device_count())]
    except Exception as error:  # AssertionError without CUDA or a driver, RuntimeError if the driver is too old
        found["problem"] = _one_line(error)
    return found


def _gpu(number: int) -> dict[str, str | None]:
    """Compute on a device; return its name, and the problem if that fails."""
    name, problem = f"cuda:{number}", None
    try:
        name = torch.cuda.get_device_name(number)
        if (torch.ones(1, device=f"cuda:{number}") + 1).item() != 2:
            problem = "It computes wrong results."
    except Exception as error:
        problem = _one_line(error)
    return {"name": name, "problem": problem}


def _has_library() -> bool:
    """Return whether the driver's library for CUDA is there. Without it, torch only says that there is no GPU."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _driver() -> dict[str, Any]:
    """Return the driver's version and the names of its GPUs according to NVML, which needs no CUDA."""
    nothing: dict[str, Any] = {"driver": None, "driver_gpus": []}
    try:
        import pynvml
    except ImportError:
        return nothing
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        names = [_text(nvml.nvmlDeviceGetName(handle)) for handle in handles]
        return {"driver": _text(nvml.nvmlSystemGetDriverVersion()), "driver_gpus": names}
    except nvml.NVMLError:
        return nothing


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _one_line(error: Exception) -> str:
    """Return torch's first sentences; a CUDA error's further lines advise developers."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    kept = lines[:1] if lines and lines[0].startswith("CUDA error") else lines
    return " ".join(line for line in kept if line) or type(error).__name__


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the problem says the same
        print(json.dumps(report()), flush=True)
    # A broken driver may hang or abort when the libraries are unloaded.
    os._exit(0)
