"""How the settings that matter for speed bear on this machine: a curve for each, the others at their defaults.

    python -m benchmarks.tune --model digits

The values of one setting take turns, and the ratio to the default's turn counts. The defaults come from this.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import machine, pictures, servers, wrk
from vit_api.cores import available_cores

_RESULT = machine.ROOT / "benchmarks" / "results" / "tune.json"
_WARM_UP_S = 0.7
_COMMON = {"cache_size": 0, "worker_stall_s": 3600}


def curves() -> dict[str, tuple[int, ...]]:
    """Return the values to try of each setting, the default's first."""
    cores = available_cores()
    tried = {
        "api_servers": (cores, max(1, cores // 2), 2 * cores),
        "max_wait_ms": (5, 0, 2, 10, 20),
        "max_batch_size": (32, 1, 4, 8, 16, 64),
        "decode_threads": (2, 1, 4),
        "cpu_threads": (1, cores),
    }
    return {name: tuple(dict.fromkeys(values)) for name, values in tried.items()}


class Plan(NamedTuple):
    """What each value of a setting is loaded with.

    Attributes:
        model: The checkpoint to serve.
        upload: What is posted.
        connections: Numbers of connections to try.
        rounds: Turns of each value.
        seconds: Of each turn.
    """

    model: str
    upload: bytes
    connections: Sequence[int]
    rounds: int
    seconds: float


def measure(plan: Plan, setting: str, values: Sequence[int]) -> list[dict[str, Any]]:
    """Load a server with each value in turns; return each one's rate, p50, p99 and ratio to the first, as medians."""
    with contextlib.ExitStack() as stack:
        running = {
            value: stack.enter_context(servers.vit_api(model=plan.model, **_COMMON, **{setting: value}))
            for value in values
        }
        for server in running.values():
            server.pause()
        results = []
        for connections in plan.connections:
            loads: dict[int, list[wrk.Load]] = {value: [] for value in running}
            for number in range(plan.rounds):
                for value, server in list(running.items())[:: 1 if number % 2 else -1]:
                    loads[value].append(_load(server, plan.upload, connections, plan.seconds))
            results += [
                _summary(setting, value, connections, loads[value], loads[values[0]]) for value in sorted(values)
            ]
    return results


def _summary(
    setting: str, value: int, connections: int, runs: Sequence[wrk.Load], defaults: Sequence[wrk.Load]
) -> dict[str, Any]:
    return {
        "setting": setting,
        "value": value,
        "connections": connections,
        "is_default": runs is defaults,
        "requests_per_s": round(statistics.median(load.rate for load in runs), 1),
        "p50_ms": round(statistics.median(load.p50_ms for load in runs), 2),
        "p99_ms": round(statistics.median(load.p99_ms for load in runs), 2),
        "ratio": round(statistics.median(a.rate / b.rate for a, b in zip(runs, defaults, strict=True)), 2),
    }


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
    parser.add_argument("--settings", nargs="+", choices=list(curves()), default=list(curves()), help="which to try")
    parser.add_argument("--connections", type=int, nargs="+", default=(1, 32, 128))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each value")
    parser.add_argument("--seconds", type=float, default=1.2, help="of each turn")
    parser.add_argument("--json", type=Path, default=_RESULT, help="where the result goes")
    options = parser.parse_args(arguments)
    if not wrk.is_installed():
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    upload = pictures.noisy_jpeg(65_000)
    plan = Plan(options.model, upload, options.connections, options.rounds, options.seconds)
    results = []
    for setting in options.settings:
        for result in measure(plan, setting, curves()[setting]):
            results.append(result)
            print(json.dumps(result), flush=True)
    what = {"model": Path(options.model).name, "upload": "65 KB JPEG, 500 x 375"}
    turns = {"rounds": options.rounds, "seconds": options.seconds}
    report = {"machine": machine.describe()} | what | turns | {"results": results}
    options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
