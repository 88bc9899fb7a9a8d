"""Samples a GPU's clocks during a measurement, so that figures from a throttled GPU are marked.

Uses NVML in a thread, and no CUDA. Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpu_parts.cuda_order import uuid_of

_SAMPLE_S = 0.2
# nvmlClocksEventReasons in nvml.h; the others are settings, or an idle GPU.
_THROTTLED = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
_CLOCK_SM, _TEMPERATURE_GPU = 1, 0


class Clocks:
    """The samples of a GPU's clocks."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[float]] = defaultdict(list)
        self._reasons: Counter[str] = Counter()
        self._asked_reasons = 0

    def sample(self, nvml: Any, handle: Any) -> None:
        """Add a sample of what the GPU reports."""

        def ask(name: str, question: Callable[..., Any], *arguments: Any, scale: float = 1.0) -> None:
            with contextlib.suppress(nvml.NVMLError):  # a MIG slice reports little
                self._values[name].append(question(handle, *arguments) * scale)

        ask("sm_mhz", nvml.nvmlDeviceGetClockInfo, _CLOCK_SM)
        ask("max_sm_mhz", nvml.nvmlDeviceGetMaxClockInfo, _CLOCK_SM)
        ask("watts", nvml.nvmlDeviceGetPowerUsage, scale=1e-3)
        ask("celsius", nvml.nvmlDeviceGetTemperature, _TEMPERATURE_GPU)
        with contextlib.suppress(nvml.NVMLError):
            self._values["busy_share"].append(nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        with contextlib.suppress(nvml.NVMLError):
            reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
            self._asked_reasons += 1
            self._reasons.update(name for bit, name in _THROTTLED.items() if reasons & bit)

    @property
    def busy_share(self) -> float | None:
        """Mean share of the time in which a kernel ran; None if the GPU does not report it."""
        samples = self._values["busy_share"]
        return round(statistics.mean(samples), 3) if samples else None

    def summary(self) -> dict[str, Any]:
        """Return the clock, the power, the temperature, and the share of samples throttled by each cause."""
        found: dict[str, Any] = {}
        kept: dict[str, dict[str, Callable[[list[float]], float]]] = {
            "sm_mhz": {"sm_mhz_min": min, "sm_mhz_mean": statistics.mean},
            "max_sm_mhz": {"sm_mhz_limit": max},
            "watts": {"watts_mean": statistics.mean},
            "celsius": {"celsius_max": max},
        }
        for name, measures in kept.items():
            if samples := self._values[name]:
                found |= {label: round(float(measure(samples)), 1) for label, measure in measures.items()}
        if self._asked_reasons:
            found["throttled"] = {name: round(n / self._asked_reasons, 2) for name, n in self._reasons.items()}
        return found


@contextlib.contextmanager
def watched(device: str) -> Iterator[Clocks]:
    """Sample the clocks of a device, such as `cuda:0`, until the context ends; nothing without NVML."""
    clocks = Clocks()
    found = _handle(device)
    if found is None:
        yield clocks
        return
    nvml, handle = found
    is_over = threading.Event()

    def collect() -> None:
        clocks.sample(nvml, handle)
        while not is_over.wait(_SAMPLE_S):
            clocks.sample(nvml, handle)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield clocks
    finally:
        is_over.set()
        thread.join()


def _handle(device: str) -> tuple[Any, Any] | None:
    """Return NVML and its handle of a device; None if it is unknown."""
    uuid = uuid_of(device)
    if uuid is None:
        return None
    import pynvml

    nvml: Any = pynvml
    try:
        return nvml, nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        return None
