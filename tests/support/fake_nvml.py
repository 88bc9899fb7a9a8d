"""A fake of NVIDIA's management library, which needs no GPU or driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class NvmlError(Exception):
    """The fake's counterpart of pynvml's error."""


class FakeNvml:
    """A driver with GPUs.

    Args:
        gpus: UUID and name of each.
        silent: The kinds of values that it does not support.
    """

    NVMLError = NvmlError

    def __init__(self, *gpus: tuple[str, str], silent: frozenset[str] = frozenset()) -> None:
        self._gpus = gpus
        self._silent = silent

    def nvmlInit(self) -> None:
        if not self._gpus:
            raise NvmlError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return self._gpus[index][0]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in dict(self._gpus):
            raise NvmlError("Not Found")
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetName(self, handle: str) -> str:
        return dict(self._gpus)[handle]

    def _report(self, what: str, value: Any) -> Any:
        if what in self._silent:
            raise NvmlError("Not Supported")
        return value

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        index = [uuid for uuid, _ in self._gpus].index(handle)
        return self._report("memory", SimpleNamespace(used=index, total=100))

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return self._report("utilization", SimpleNamespace(gpu=87))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> Any:
        return self._report("power", 312_500)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> Any:
        return self._report("energy", 1_500)

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> Any:
        return self._report("clocks", 1395)

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> Any:
        return self._report("clocks", 1980)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> Any:
        return self._report("temperature", 71)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> Any:
        return self._report("reasons", 0x04 | 0x01)


TWO_GPUS = (("GPU-aa-1", "H200"), ("GPU-bb-2", "H200"))
