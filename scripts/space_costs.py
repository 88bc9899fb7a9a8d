"""Write the tables of docs/space.md, with the price and throughput of each hardware: `python -m scripts.space_costs`.

Prices and GPU rates are published ones, with their sources below. CPU figures were measured and are read from
benchmarks/results/.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = _ROOT / "benchmarks" / "results"
_SECTION = re.compile(r"(<!-- costs -->\n).*?(<!-- end -->)", re.DOTALL)
PAGE = _ROOT / "docs" / "space.md"

# ViT-B/16 at 224 px in FP16, batches of 32, the model alone: FasterTransformer's docs/vit_guide.md, Performance, column
# "B_16-224 (FP16)", milliseconds for a batch: https://github.com/NVIDIA/FasterTransformer
_BATCH = 32
_T4_PER_S = _BATCH / 57.22e-3
_A100_PER_S = _BATCH / 10.04e-3


@dataclass(frozen=True)
class Hardware:
    """Hardware that a Space can rent.

    Attributes:
        name: The hub's name.
        cores: Virtual cores.
        memory_gb: The machine's memory.
        gpu: The GPU's name, if any.
        usd_per_hour: The listed price.
        model_per_s: Published images/s of the model on the GPU, if known.
    """

    name: str
    cores: int
    memory_gb: int
    gpu: str | None
    usd_per_hour: float
    model_per_s: float | None = None

    @property
    def http_processes(self) -> int:
        """Recommended HTTP processes: one per core, less one for the worker on machines with a GPU."""
        return self.cores - 1 if self.gpu else self.cores


# https://huggingface.co/docs/hub/spaces-overview, table "Hardware resources"
HARDWARE = (
    Hardware("cpu-basic", 2, 16, None, 0.0),
    Hardware("cpu-upgrade", 8, 32, None, 0.03),
    Hardware("t4-small", 4, 15, "T4", 0.40, _T4_PER_S),
    Hardware("t4-medium", 8, 30, "T4", 0.60, _T4_PER_S),
    Hardware("l4x1", 8, 30, "L4", 0.80),
    Hardware("a10g-small", 4, 15, "A10G", 1.00),
    Hardware("a10g-large", 12, 46, "A10G", 1.50),
    Hardware("l40sx1", 8, 62, "L40S", 1.80),
    Hardware("a100-large", 12, 142, "A100", 2.50, _A100_PER_S),
)


@dataclass(frozen=True)
class Costs:
    """Measured CPU time per image, in seconds of one core.

    Attributes:
        jpeg_s: Of the HTTP process, for a 65 KB JPEG of 500 x 375 pixels.
        photo_s: Of the whole server, for a detailed JPEG of 4032 x 3024 pixels.
        model_s: Of ViT-B/16 on a CPU.
    """

    jpeg_s: float
    photo_s: float
    model_s: float

    def rates(self, hardware: Hardware, decode_s: float) -> tuple[float | None, float]:
        """Return the images/s that the model can classify, if known, and that can be decoded."""
        if hardware.gpu:
            return hardware.model_per_s, hardware.http_processes / decode_s
        return hardware.cores / self.model_s, hardware.cores / decode_s

    def limit(self, hardware: Hardware, decode_s: float) -> float | None:
        """Return the images/s of model and decoding together, or None if the model's rate is unknown.

        With a GPU both run at the same time; on a CPU they share the cores.
        """
        model, decode = self.rates(hardware, decode_s)
        if model is None:
            return None
        return min(model, decode) if hardware.gpu else 1 / (1 / model + 1 / decode)


def measured() -> Costs:
    """Return the measured costs."""
    profile, scaling = _result("profile"), _result("scaling")
    jpeg_us = sum(profile["results"]["65 KB JPEG"]["cpu_us_per_request"]["http"].values())
    cores = scaling["machine"]["cores"]
    photo_per_s = scaling["results"]["camera"]["detailed"]["requests_per_s"]["draft"]
    model_per_s = max(scaling["results"]["vit_base"]["alone_per_s"]["auto"].values())
    return Costs(jpeg_us / 1e6, cores / photo_per_s, cores / model_per_s)


def usd_per_million(usd_per_hour: float, images_per_s: float) -> float:
    """Return the price of a million images on a fully used machine."""
    return usd_per_hour / 3600 / images_per_s * 1e6


def tables(costs: Costs) -> str:
    """Return the two tables, in Markdown."""
    sizes = "\n".join(map(_size_row, HARDWARE))
    prices = "\n".join(_price_row(hardware, costs) for hardware in HARDWARE)
    return f"""\
| hardware | cores | memory | GPU | $ per hour | `VIT_API_API_SERVERS` |
|---|---|---|---|---|---|
{sizes}

A 65 KB JPEG of 500 x 375 pixels takes {costs.jpeg_s * 1e3:.2f} ms of one core; a photo of 4032 x 3024 pixels (2.4 MB)
takes {costs.photo_s * 1e3:.0f} ms. Images per second:

| hardware | model alone | 65 KB JPEGs decoded | photos decoded | $ per million 65 KB JPEGs | $ per million photos |
|---|---|---|---|---|---|
{prices}
"""


def _size_row(hardware: Hardware) -> str:
    price = f"{hardware.usd_per_hour:.2f}" if hardware.usd_per_hour else "free"
    cells = (f"`{hardware.name}`", hardware.cores, f"{hardware.memory_gb} GB", hardware.gpu or "-", price)
    return "| " + " | ".join(map(str, (*cells, hardware.http_processes))) + " |"


def _price_row(hardware: Hardware, costs: Costs) -> str:
    model, jpegs = costs.rates(hardware, costs.jpeg_s)
    _, photos = costs.rates(hardware, costs.photo_s)
    prices = [_price(hardware, costs.limit(hardware, decode_s)) for decode_s in (costs.jpeg_s, costs.photo_s)]
    cells = [f"`{hardware.name}`", "not known" if model is None else f"{model:,.0f}", f"{jpegs:,.0f}", f"{photos:,.0f}"]
    return "| " + " | ".join(cells + prices) + " |"


def _price(hardware: Hardware, images_per_s: float | None) -> str:
    if images_per_s is None:
        return "not known"
    return f"{usd_per_million(hardware.usd_per_hour, images_per_s):.2f}" if hardware.usd_per_hour else "free"


def _result(name: str) -> Any:
    return json.loads((_RESULTS / f"{name}.json").read_text())


def with_tables(page: str) -> str:
    """Return the page with its tables replaced."""
    return _SECTION.sub(lambda match: match[1] + tables(measured()) + match[2], page)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
