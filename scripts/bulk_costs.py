"""Write the table of docs/ray.md, with what a thousand million images cost: `python -m scripts.bulk_costs`.

    python -m scripts.bulk_costs --gpu-images-per-s 9000 --cores 32 --usd-per-hour 4

With options it prints the table for that machine. The time to decode an image and the rate of an H200 were measured and
are read from benchmarks/results/; rates of other GPUs and prices are published ones, with their sources below.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts import space_costs

PAGE = Path(__file__).resolve().parent.parent / "docs" / "ray.md"
_SECTION = re.compile(r"(<!-- bulk costs -->\n).*?(<!-- end -->)", re.DOTALL)

IMAGES = 1e9
GPUS = 64
IMAGE_BYTES = 65_000
SHARE = 0.85
"""Of the limit: the goal that `python -m benchmarks.bulk` is held against."""
START_S = 600.0
"""Until a machine that was rented works: its boot, the image's pull and the model's download."""
USD_PER_MILLION_READS = 0.40
USD_PER_MILLION_WRITES = 5.00
"""S3 Standard, us-east-1: https://aws.amazon.com/s3/pricing, "Requests & data retrievals". Traffic within a region is
free."""
PART_SIZE = 512
_GPU_RESULT = PAGE.parent.parent / "benchmarks" / "results" / "gpu_h200.json"
_BATCH = 32
_H200_USD_PER_HOUR = 5.00
"""AWS, one GPU: https://huggingface.co/docs/inference-endpoints/support/pricing."""


@dataclass(frozen=True)
class Machine:
    """A machine with one GPU.

    Attributes:
        name: What it is.
        gpu_per_s: Images/s of the model alone on the GPU.
        cores: Cores beside it; one has the model's process, the others decode.
        usd_per_hour: Its price.
    """

    name: str
    gpu_per_s: float
    cores: int
    usd_per_hour: float


@dataclass(frozen=True)
class Costs:
    """What all images cost.

    Attributes:
        machine_per_s: Images/s of one machine.
        is_decoding: Whether its cores limit it, and not the GPU.
        hours: How long all machines take.
        usd_machines: Their price.
        usd_requests: The price of the object store's requests.
        network_gbit_s: What one machine reads.
    """

    machine_per_s: float
    is_decoding: bool
    hours: float
    usd_machines: float
    usd_requests: float
    network_gbit_s: float

    @property
    def usd(self) -> float:
        """The price of everything."""
        return self.usd_machines + self.usd_requests


def costs_of(machine: Machine, decode_s: float, *, images: float = IMAGES, gpus: int = GPUS) -> Costs:
    """Return what images cost on so many machines with one GPU each.

    A machine classifies as many images/s as its GPU or its decoding cores allow, whichever is less, times `SHARE`.

    Args:
        machine: The machine.
        decode_s: Time of one core to read, hash and decode an image, in seconds.
        images: Number of images.
        gpus: Number of machines.
    """
    decode_per_s = (machine.cores - 1) / decode_s
    per_s = SHARE * min(machine.gpu_per_s, decode_per_s)
    hours = (images / gpus / per_s + START_S) / 3600
    requests = images / 1e6 * USD_PER_MILLION_READS + math.ceil(images / PART_SIZE) / 1e6 * USD_PER_MILLION_WRITES
    return Costs(
        machine_per_s=per_s,
        is_decoding=decode_per_s < machine.gpu_per_s,
        hours=hours,
        usd_machines=hours * gpus * machine.usd_per_hour,
        usd_requests=requests,
        network_gbit_s=per_s * IMAGE_BYTES * 8 / 1e9,
    )


def measured() -> Machine:
    """Return the machine of `benchmarks/results/gpu_h200.json`: its rate was measured, and its price is published."""
    result = json.loads(_GPU_RESULT.read_text())
    alone = result["parts"]["alone"]["result"]
    wanted = ("cudagraph", alone["dtype"], _BATCH)
    (rate,) = (row["images_per_s"] for row in alone["rows"] if (row["engine"], row["dtype"], row["batch"]) == wanted)
    return Machine("`nvidia-h200` x1 (H200, measured)", rate, result["machine"]["cores"], _H200_USD_PER_HOUR)


def published() -> list[Machine]:
    """Return the machines whose price and whose model's rate are published."""
    return [
        Machine(f"`{each.name}` ({each.gpu})", each.model_per_s, each.cores, each.usd_per_hour)
        for each in space_costs.HARDWARE
        if each.model_per_s is not None
    ]


def table(machines: Iterable[Machine], decode_s: float) -> str:
    """Return the table, in Markdown."""
    rows = "\n".join(_row(machine, costs_of(machine, decode_s)) for machine in machines)
    return f"""\
| machine | $ per hour | model alone | images/s of it | limit | reads | hours | $ for machines | $ for requests |
|---|---|---|---|---|---|---|---|---|
{rows}
"""


def _row(machine: Machine, costs: Costs) -> str:
    cells = (
        machine.name,
        f"{machine.usd_per_hour:.2f}",
        f"{machine.gpu_per_s:,.0f}/s",
        f"{costs.machine_per_s:,.0f}",
        "decoding" if costs.is_decoding else "GPU",
        f"{costs.network_gbit_s:.1f} Gbit/s",
        f"{costs.hours:.1f}",
        f"{costs.usd_machines:,.0f}",
        f"{costs.usd_requests:,.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def with_table(page: str) -> str:
    """Return the page with its table replaced."""
    made = table([*published(), measured()], space_costs.measured().jpeg_s)
    return _SECTION.sub(lambda match: match[1] + made + match[2], page)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the command line's machine, or write the page's."""
    parser = argparse.ArgumentParser(prog="python -m scripts.bulk_costs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gpu-images-per-s", type=float, help="images/s of the model alone on one GPU")
    parser.add_argument("--cores", type=int, default=12, help="cores for each GPU (default: %(default)s)")
    parser.add_argument("--usd-per-hour", type=float, default=2.5, help="price of a GPU (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.gpu_images_per_s is None:
        PAGE.write_text(with_table(PAGE.read_text()))
    else:
        machine = Machine("this machine", options.gpu_images_per_s, options.cores, options.usd_per_hour)
        print(table([machine], space_costs.measured().jpeg_s), end="")


if __name__ == "__main__":
    main()
