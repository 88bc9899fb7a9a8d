"""A fake `torch` for the process that reports on CUDA, which needs no GPU, no driver and no slow import.

`install` writes a package to a folder and puts it first in PYTHONPATH, so that a child process imports it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

# The messages of torch 2.11 with CUDA 13.0, with a stub of libcuda.so.1 that responded like such a driver.
NO_GPU = "No CUDA GPUs are available"
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)
WRONG_LIBRARY = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? Error 803: system has unsupported display driver / cuda driver combination"
)
NO_KERNEL = (
    "CUDA error: no kernel image is available for execution on the device\n"
    "CUDA kernel errors might be asynchronously reported at some other API call."
)

_CODE = """
import json, os, sys, time
from types import SimpleNamespace

_plan = json.loads(os.environ["FAKE_TORCH"])
print("a library that prints")
if _plan["hangs"]:
    time.sleep(600)
if _plan["dies"]:
    print("a driver that aborts", file=sys.stderr, flush=True)
    os.abort()

__version__ = _plan["version"]
version = SimpleNamespace(cuda=_plan["cuda"])

def _visible():
    # As CUDA: up to the first that does not exist, by number or by the beginning of a UUID; one MIG slice at most.
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None or not _plan["uuids"]:
        return _plan["gpus"]
    found = []
    for name in named.split(","):
        here = [
            gpu
            for number, (gpu, uuid) in enumerate(zip(_plan["gpus"], _plan["uuids"]))
            if name == str(number) or name.startswith(("GPU-", "MIG-")) and uuid.startswith(name)
        ]
        if len(here) != 1 or found and name.startswith("MIG-"):
            break
        found += here
    return found

def _init():
    if _plan["problem"]:
        raise RuntimeError(_plan["problem"])
    if not _visible():
        raise RuntimeError("No CUDA GPUs are available")

cuda = SimpleNamespace(
    init=_init,
    device_count=lambda: len(_visible()),
    get_device_name=lambda number: _visible()[number][0],
)

class _Ones:
    def __init__(self, device):
        problem = _visible()[int(device.partition(":")[2])][1]
        if problem:
            raise RuntimeError(problem)

    def __add__(self, other):
        return SimpleNamespace(item=lambda: 1 + other)

def ones(size, device):
    return _Ones(device)
"""


def install(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *gpus: str | tuple[str, str],
    version: str = "2.13.0+cu130",
    cuda: str | None = "13.0",
    problem: str | None = None,
    hangs: bool = False,
    dies: bool = False,
    uuids: Sequence[str] = (),
) -> None:
    """Make child processes import a torch that sees these GPUs.

    Args:
        monkeypatch: Restores the environment after the test.
        folder: Where to write the package.
        gpus: The name of each GPU, or its name and the error of its first computation.
        version: The version of torch.
        cuda: The CUDA version that torch was built for.
        problem: The error of the CUDA initialisation.
        hangs: Whether the import hangs.
        dies: Whether the import aborts the process.
        uuids: The UUID of each GPU; with them, `CUDA_VISIBLE_DEVICES` selects as in CUDA.
    """
    package = folder / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_CODE)
    named = [gpu if isinstance(gpu, tuple) else (gpu, None) for gpu in gpus]
    plan: dict[str, Any] = {"version": version, "cuda": cuda, "problem": problem, "gpus": named}
    monkeypatch.setenv("FAKE_TORCH", json.dumps(plan | {"hangs": hangs, "dies": dies, "uuids": [*uuids]}))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(":"))
