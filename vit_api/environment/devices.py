"""Chooses the devices that inference workers run on. Knows nothing of models, and never imports torch.

If there may be a GPU, torch reports on it in a separate process: see `model.cuda_report`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vit_api.environment import space

logger = logging.getLogger(__name__)

_REPORT = "vit_api.model.cuda_report"
_REPORT_S = 180.0
"""Time limit of the report. The first import of torch reads gigabytes, and each GPU is initialised."""
_KILL_S = 1.0

_DEVICE_FILES = ("nvidia[0-9]*", "dxg", "nvmap")
"""In /dev, where a GPU is accessible: also in containers, on Windows (WSL 2), and on Jetson boards."""
_HIDING = "CUDA_VISIBLE_DEVICES"

# What torch says, in 2.11 as in 2.13: c10/cuda/CUDAFunctions.cpp.
_TOO_OLD = "driver on your system is too old"
_NONE_VISIBLE = "No CUDA GPUs are available"

OLD_DRIVER_INDEX = "https://download.pytorch.org/whl/cu126"
"""Builds of torch for CUDA 12.6, which need driver 525 or newer; those of PyPI are for CUDA 13 and need 580."""


_UNKNOWN = "of an unknown version"


@dataclass(frozen=True)
class CudaReport:
    """What torch says about the GPUs; see `model.cuda_report`.

    Attributes:
        torch: torch's version.
        cuda: The CUDA version that torch was built for; None without CUDA.
        has_library: Whether there is the driver's library for CUDA.
        driver: The driver's version; None if unknown.
        driver_gpus: The names of the GPUs that the driver lists.
        problem: Why CUDA can't be used at all; None if it can.
        gpus: The name of each visible device, and why it can't be used or None, in CUDA's order.
    """

    torch: str = _UNKNOWN
    cuda: str | None = None
    has_library: bool = True
    driver: str | None = None
    driver_gpus: list[str] = field(default_factory=list)
    problem: str | None = None
    gpus: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_without_cuda(self) -> bool:
        """Whether this build of torch can't use any GPU."""
        return self.cuda is None and self.torch != _UNKNOWN

    @property
    def usable(self) -> list[int]:
        """The numbers of the devices that compute."""
        return [number for number, gpu in enumerate(self.gpus) if gpu["problem"] is None]


def choose_devices(device: str) -> list[str]:
    """Return the devices that the setting `device` selects, as torch names them.

    `auto` selects every GPU that torch can compute on, or else the CPU, with a warning if there is a GPU. LitServe's
    own `auto` asks torch, but only where torch is already imported, which it never is in the main process.

    Raises:
        ValueError: The setting names GPUs that torch can't compute on; the message says why.
    """
    if device == "cpu" or (device == "auto" and not _may_have_gpu()):
        return ["cpu"]
    report = ask_torch()
    if device.startswith("cuda:"):
        return [f"cuda:{number}" for number in _checked(device, report)]
    if not report.usable:
        if device == "cuda":
            raise ValueError(f"VIT_API_DEVICE is cuda, but no GPU can be used: {reason(report)}")
        logger.warning("The model runs on the CPU, many times slower than on a GPU: %s", reason(report))
        return ["cpu"]
    for number, gpu in enumerate(report.gpus):
        if gpu["problem"] is not None:
            logger.warning("cuda:%d (%s) is not used: %s", number, gpu["name"], gpu["problem"])
    return [f"cuda:{number}" for number in report.usable]


def ask_torch() -> CudaReport:
    """Return torch's report on the GPUs, from a separate process. Takes seconds."""
    spec = find_spec(_REPORT)
    assert spec is not None and spec.origin is not None
    # -P: otherwise the file's folder would come first in the path, and its modules could hide others.
    command = [sys.executable, "-P", spec.origin]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        answer, messages = process.communicate(timeout=_REPORT_S)
    except subprocess.TimeoutExpired:
        _kill(process)
        return CudaReport(problem=f"The driver did not answer within {_REPORT_S:g} s.")
    except BaseException:  # a signal to stop
        _kill(process)
        raise
    try:
        return CudaReport(**json.loads(answer.splitlines()[-1]))  # libraries may print, too
    except (IndexError, ValueError, TypeError):
        last = (messages.strip().splitlines() or ["no message"])[-1]
        return CudaReport(problem=f"Asking torch for the GPUs failed with status {process.returncode}: {last}")


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # a process that the driver blocks can't be killed
        process.communicate(timeout=_KILL_S)


def reason(report: CudaReport) -> str:
    """Return why no GPU can be used, and what to do; sentences for the operator."""
    problem = (report.problem or "CUDA lists no device.").removesuffix(".")
    if report.is_without_cuda or _TOO_OLD in problem:
        return _unsuitable_torch(report)
    if report.gpus:
        return " ".join(f"cuda:{number} ({gpu['name']}): {gpu['problem']}" for number, gpu in enumerate(report.gpus))
    if not report.has_library and (report.driver_gpus or _has_device_files()):
        return (
            "There is a GPU, but not the driver's library for CUDA (libcuda.so.1). "
            "In a container, set NVIDIA_DRIVER_CAPABILITIES=compute,utility."
        )
    if _NONE_VISIBLE in problem and _HIDING in os.environ:
        listed = f" The driver lists {', '.join(report.driver_gpus)}." if report.driver_gpus else ""
        return f"{_HIDING} is {os.environ[_HIDING]!r}, which selects no GPU: unset or correct it.{listed}"
    if accelerator := space.accelerator():
        return (
            f"This Space's hardware is {accelerator}, but torch finds no GPU: {problem}. "
            "Restart the Space; if that does not help, check that its image includes CUDA."
        )
    return f"{problem}. Set VIT_API_DEVICE to auto or cpu to run on the CPU."


def _unsuitable_torch(report: CudaReport) -> str:
    install = f"pip install --force-reinstall torch=={report.torch.partition('+')[0]}"
    if report.is_without_cuda:
        return f"torch {report.torch} is built without CUDA. Install a build with it: {install}{_index_option(report)}"
    driver = f"driver {report.driver}" if report.driver else "driver"
    return (
        f"torch {report.torch} is built for CUDA {report.cuda}, and the NVIDIA {driver} is too old for that: CUDA 13 "
        f"needs driver 580 or newer, CUDA 12 needs 525. Update the driver, or install an older build: {install} "
        f"--index-url {OLD_DRIVER_INDEX}"
    )


def _checked(device: str, report: CudaReport) -> list[int]:
    """Return the numbers in `device`, such as `cuda:0,2`, all of which torch must be able to compute on."""
    numbers = [int(number) for number in device.partition(":")[2].split(",")]
    if not report.gpus:
        raise ValueError(f"VIT_API_DEVICE is {device}, but no GPU can be used: {reason(report)}")
    for number in numbers:
        if number >= len(report.gpus):
            visible = f", among those that {_HIDING} selects" if os.environ.get(_HIDING) else ""
            raise ValueError(
                f"VIT_API_DEVICE is {device}, but there is no cuda:{number}: the numbers go from 0 to "
                f"{len(report.gpus) - 1}{visible}."
            )
        if problem := report.gpus[number]["problem"]:
            raise ValueError(f"VIT_API_DEVICE is {device}, but cuda:{number} can't be used: {problem}")
    return numbers


def _may_have_gpu() -> bool:
    """Return whether it is worth asking torch, which takes seconds: there is a sign of a GPU."""
    return _has_device_files() or space.accelerator() is not None


def _has_device_files(folder: Path = Path("/dev")) -> bool:
    return any(True for pattern in _DEVICE_FILES for _ in folder.glob(pattern))


def _index_option(report: CudaReport) -> str:
    """Return pip's option for a driver that is too old for PyPI's torch, or empty if it is new enough."""
    major = (report.driver or "").partition(".")[0]
    return "" if major.isdecimal() and int(major) >= 580 else f" --index-url {OLD_DRIVER_INDEX}"
