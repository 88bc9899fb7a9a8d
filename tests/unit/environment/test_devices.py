"""The devices that the setting selects, and the messages when a GPU is missing; torch and NVML are fakes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import fake_torch
from vit_api.environment import devices
from vit_api.environment.devices import CudaReport, choose_devices, reason

Install = Callable[..., None]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPACE_ID", "ACCELERATOR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    has_device_files(monkeypatch, True)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Make the child process import a fake torch; see `fake_torch.install`."""
    return lambda *gpus, **options: fake_torch.install(monkeypatch, tmp_path, *gpus, **options)


def has_device_files(monkeypatch: pytest.MonkeyPatch, value: bool) -> None:
    monkeypatch.setattr(devices, "_has_device_files", lambda: value)


def report(**fields: Any) -> CudaReport:
    defaults = {"torch": "2.13.0+cu130", "cuda": "13.0", "has_library": True, "problem": fake_torch.NO_GPU}
    return CudaReport(**(defaults | fields))


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        pytest.param("auto", ["H100"] * 2, ["cuda:0", "cuda:1"], id="auto"),
        pytest.param("cuda", ["H100"] * 2, ["cuda:0", "cuda:1"], id="every GPU"),
        pytest.param("cuda:1", ["H100"] * 2, ["cuda:1"], id="one GPU"),
        pytest.param("cuda:0,2", ["H100"] * 3, ["cuda:0", "cuda:2"], id="some GPUs"),
        pytest.param("auto", ["NVIDIA H100 MIG 1g.10gb"], ["cuda:0"], id="a MIG slice"),
    ],
)
def test_devices_are_those_that_torch_computes_on(
    install: Install, device: str, gpus: list[str], expected: list[str]
) -> None:
    """The setting selects them by CUDA's numbers."""
    install(*gpus)
    assert choose_devices(device) == expected


UUIDS = ("GPU-aa-1", "GPU-bb-2", "MIG-cc-3")


@pytest.fixture
def _nvidia_smi_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Have an nvidia-smi first in the path that says nonsense, and check that it is not run."""
    called = tmp_path / "called"
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {called}\necho nonsense\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    yield
    assert not called.exists()


@pytest.mark.usefixtures("_nvidia_smi_fails")
@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        pytest.param(None, ["cuda:0", "cuda:1", "cuda:2"], id="all"),
        pytest.param("2,0", ["cuda:0", "cuda:1"], id="numbers"),
        pytest.param("GPU-bb-2", ["cuda:0"], id="a UUID"),
        pytest.param("GPU-bb,GPU-aa", ["cuda:0", "cuda:1"], id="beginnings of UUIDs"),
        pytest.param("MIG-cc-3", ["cuda:0"], id="a MIG slice"),
        pytest.param("MIG-cc-3,MIG-cc-3", ["cuda:0"], id="two MIG slices"),
        pytest.param("0,7,1", ["cuda:0"], id="up to one that does not exist"),
        pytest.param("", ["cpu"], id="empty"),
        pytest.param("-1", ["cpu"], id="minus one"),
        pytest.param("GPU-ff", ["cpu"], id="an unknown UUID"),
        pytest.param("NoDevFiles", ["cpu"], id="what CUDA does not know"),
    ],
)
def test_visible_devices(
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    visible: str | None,
    expected: list[str],
) -> None:
    """CUDA selects them, without NVML, as with NVIDIA_DRIVER_CAPABILITIES=compute. The CPU comes with a warning."""
    monkeypatch.setattr(devices, "CudaReport", lambda **fields: CudaReport(**(fields | {"has_library": True})))
    install("H100", "H100", "H100 MIG 1g.10gb", uuids=UUIDS)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert choose_devices("auto") == expected
    warnings = [] if expected != ["cpu"] else [f"CUDA_VISIBLE_DEVICES is {visible!r}, which selects no GPU"]
    assert len(caplog.messages) == len(warnings)
    assert all(text in caplog.text for text in warnings)
    assert devices.ask_torch().driver is None


def test_torch_is_not_imported_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not needed if the CPU is set, or if there is no sign of a GPU."""
    monkeypatch.setattr(devices, "ask_torch", lambda: pytest.fail("torch was asked"))
    assert choose_devices("cpu") == ["cpu"]
    has_device_files(monkeypatch, False)
    assert choose_devices("auto") == ["cpu"]


@pytest.mark.parametrize(
    "name", [pytest.param("nvidia0", id="driver"), pytest.param("dxg", id="WSL"), pytest.param("nvmap", id="Jetson")]
)
def test_signs_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """A device file is a sign; the driver's other files exist without a GPU as well."""
    monkeypatch.undo()
    (tmp_path / "nvidiactl").touch()
    assert not devices._has_device_files(tmp_path)
    (tmp_path / name).touch()
    assert devices._has_device_files(tmp_path)


def test_a_broken_gpu_is_skipped(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """The others serve, and a warning gives the reason; selecting the broken one by number stops the start."""
    install("NVIDIA H100", ("Tesla P100", fake_torch.NO_KERNEL), "NVIDIA H100")
    assert choose_devices("auto") == ["cuda:0", "cuda:2"]
    (warning,) = caplog.messages
    assert warning == (
        "cuda:1 (Tesla P100) is not used: CUDA error: no kernel image is available for execution on the device"
    )
    with pytest.raises(ValueError, match=r"cuda:0,1, but cuda:1 can't be used: CUDA error: no kernel image"):
        choose_devices("cuda:0,1")


def test_an_unknown_number_stops_the_start(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message lists the available numbers and what determines them."""
    install("NVIDIA H100", "NVIDIA H100")
    with pytest.raises(ValueError, match=r"there is no cuda:2: the numbers go from 0 to 1\.$"):
        choose_devices("cuda:2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,GPU-bb")
    with pytest.raises(ValueError, match=r"from 0 to 1, among those that CUDA_VISIBLE_DEVICES selects\.$"):
        choose_devices("cuda:1,2")


def test_missing_gpus_stop_the_start(install: Install) -> None:
    """The message gives the reason, for a setting of all GPUs or of one."""
    install(problem=fake_torch.TOO_OLD)
    for device in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=rf"^VIT_API_DEVICE is {device}, but no GPU can be used: .*too old"):
            choose_devices(device)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        pytest.param({"problem": fake_torch.TOO_OLD}, "too old for that", id="an old driver"),
        pytest.param({"version": "2.13.0+cpu", "cuda": None}, "built without CUDA", id="torch without CUDA"),
        pytest.param({"problem": fake_torch.WRONG_LIBRARY}, "Error 803: system has unsupported", id="another library"),
        pytest.param({"dies": True}, "failed with status -6: a driver that aborts", id="a driver that aborts"),
        pytest.param({"hangs": True}, "did not answer within 2 s", id="a driver that hangs"),
    ],
)
def test_a_fallback_to_the_cpu_is_logged(
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    why: str,
) -> None:
    """If there is a GPU, one warning says why the model does not run on it."""
    if options.get("hangs"):
        monkeypatch.setattr(devices, "_REPORT_S", 2.0)
    # The child process finds no driver library here.
    monkeypatch.setattr(devices, "CudaReport", lambda **fields: CudaReport(**(fields | {"has_library": True})))
    install(**options)
    with caplog.at_level(logging.WARNING):
        assert choose_devices("auto") == ["cpu"]
    (warning,) = caplog.messages
    assert warning.startswith("The model runs on the CPU, many times slower than on a GPU: ")
    assert why in warning


@pytest.mark.parametrize(
    ("visible", "fields", "why"),
    [
        pytest.param("", {}, "CUDA_VISIBLE_DEVICES is '', which selects no GPU", id="empty"),
        pytest.param("-1", {}, "CUDA_VISIBLE_DEVICES is '-1', which selects no GPU", id="minus one"),
        pytest.param("GPU-ff", {}, "CUDA_VISIBLE_DEVICES is 'GPU-ff', which selects no GPU", id="an unknown UUID"),
        pytest.param("-1", {"driver_gpus": ["H100", "H100"]}, "The driver lists H100, H100.", id="which there are"),
        pytest.param(None, {"has_library": False}, "NVIDIA_DRIVER_CAPABILITIES=compute,utility", id="utility only"),
        pytest.param("0", {"has_library": False}, "NVIDIA_DRIVER_CAPABILITIES=compute,utility", id="with a number"),
        pytest.param(
            None,
            {"problem": fake_torch.TOO_OLD, "driver": "535.104.05"},
            "built for CUDA 13.0, and the NVIDIA driver 535.104.05 is too old for that: CUDA 13 needs driver 580 or "
            "newer, CUDA 12 needs 525. Update the driver, or install an older build: pip install --force-reinstall "
            "torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126",
            id="an old driver",
        ),
        pytest.param(
            None,
            {"torch": "2.13.0+cpu", "cuda": None, "driver": "535.104.05"},
            "torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126",
            id="no CUDA, an old driver",
        ),
        pytest.param(
            None,
            {"gpus": [{"name": "P100", "problem": "CUDA error: no kernel image"}]},
            "cuda:0 (P100): CUDA error: no kernel image",
            id="an old GPU",
        ),
        pytest.param(None, {"problem": "Error 999."}, "Error 999. Set VIT_API_DEVICE to auto or cpu", id="unknown"),
    ],
)
def test_the_reason_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, fields: dict[str, Any], why: str
) -> None:
    """Each reason names the variable to set, or the command that installs another torch."""
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert why in reason(report(**fields))


def test_a_new_driver_needs_no_other_index() -> None:
    """PyPI's torch runs with it, so the message suggests no other."""
    text = reason(report(torch="2.13.0+cpu", cuda=None, driver="580.65.06"))
    assert text.endswith("pip install --force-reinstall torch==2.13.0")


def test_the_report_runs_with_the_installed_torch() -> None:
    """It lists GPUs or says why torch can't use any."""
    torch = pytest.importorskip("torch")
    found = devices.ask_torch()
    assert found.torch == torch.__version__
    assert found.cuda == torch.version.cuda
    assert bool(found.usable) == torch.cuda.is_available()
    assert bool(found.problem) != bool(found.gpus)


@pytest.mark.parametrize(
    ("accelerator", "device", "has_files", "is_warned"),
    [
        pytest.param("t4-small", "auto", False, True, id="paid for, not found"),
        pytest.param("t4-small", "auto", True, True, id="paid for, not usable"),
        pytest.param("t4-small", "cpu", True, False, id="not wanted"),
        pytest.param("none", "auto", False, False, id="not paid for"),
        pytest.param("", "auto", False, False, id="not said"),
    ],
)
def test_a_space_without_its_gpu_logs_a_warning(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    accelerator: str,
    device: str,
    has_files: bool,
    is_warned: bool,
) -> None:
    """A server on the CPU of GPU hardware is slow, but looks healthy."""
    monkeypatch.setenv("SPACE_ID", "org/name")
    monkeypatch.setenv("ACCELERATOR", accelerator)
    has_device_files(monkeypatch, has_files)
    monkeypatch.setattr(devices, "ask_torch", report)
    with caplog.at_level(logging.WARNING):
        assert choose_devices(device) == ["cpu"]
    assert ("t4-small" in caplog.text) is is_warned
