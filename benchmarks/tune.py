"""Which numbers of processes and threads, and which batches, suit this machine.

    python -m benchmarks.tune --model digits

The server with its defaults, and with one setting changed at a time, in turns; the ratio to the defaults counts. The
defaults come from this.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, pictures, servers, wrk
from vit_api.cores import available_cores

_RESULT = machine.ROOT / "benchmarks" / "results" / "tune.json"
_DEFAULTS = "defaults"
_WARM_UP_S = 1.0
_COMMON = {"cache_size": 0, "worker_stall_s": 3600}


def variants() -> dict[str, dict[str, int]]:
    """Return the settings to try, by name."""
    cores = available_cores()
    tried: dict[str, dict[str, int]] = {_DEFAULTS: {}}
    for name, values in {
        "api_servers": (max(1, cores // 2), cores, 2 * cores),
        "decode_threads": (1, 2, 4),
        "cpu_threads": (1, cores),
        "max_wait_ms": (0, 20),
        "max_batch_size": (8, 64),
    }.items():
        tried |= {f"{name}={value}": {name: value} for value in dict.fromkeys(values)}
    return tried


def measure(model: str, upload: bytes, connections: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Load each variant in turns; return its rate, its p50, and the median of its ratios to the defaults."""
    with contextlib.ExitStack() as stack:
        running = {
            name: stack.enter_context(servers.vit_api(model=model, **_COMMON, **settings))
            for name, settings in variants().items()
        }
        loads: dict[str, list[wrk.Load]] = {name: [] for name in running}
        for server in running.values():
            server.pause()
        for number in range(rounds):
            for name, server in list(running.items())[:: 1 if number % 2 else -1]:
                loads[name].append(_load(server, upload, connections, seconds))
    defaults = loads[_DEFAULTS]
    return [
        {
            "settings": name,
            "requests_per_s": round(statistics.median(load.rate for load in runs), 1),
            "p50_ms": round(statistics.median(load.p50_ms for load in runs), 2),
            "ratio": round(statistics.median(a.rate / b.rate for a, b in zip(runs, defaults, strict=True)), 2),
        }
        for name, runs in loads.items()
    ]


def _load(server: servers.Server, upload: bytes, connections: int, seconds: float) -> wrk.Load:
    url = server.url + "/predict"
    with server.turn():
        wrk.post(url, upload, wrk.RAW, connections=connections, seconds=_WARM_UP_S)
        load = wrk.post(url, upload, wrk.RAW, connections=connections, seconds=seconds)
    load.check(url)
    return load


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the measurement of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="digits", help="checkpoint to serve (default: %(default)s)")
    parser.add_argument("--connections", type=int, nargs="+", default=(1, 128))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant")
    parser.add_argument("--seconds", type=float, default=2, help="of each turn")
    parser.add_argument("--json", type=Path, default=_RESULT, help="where the result goes")
    options = parser.parse_args(arguments)
    if not wrk.is_installed():
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    upload = pictures.noisy_jpeg(65_000)
    results = []
    for connections in options.connections:
        for result in measure(options.model, upload, connections, options.rounds, options.seconds):
            results.append({"connections": connections} | result)
            print(json.dumps(results[-1]), flush=True)
    what = {"model": Path(options.model).name, "upload": "65 KB JPEG, 500 x 375"}
    options.json.write_text(json.dumps({"machine": machine.describe()} | what | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
