"""The effect of each performance setting on this machine: one curve per setting, with the others at their defaults.

    python -m benchmarks.tune --model digits

The values of a setting take turns, and the ratio to the default's turn counts. The defaults were chosen this way.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import command_line, pictures, plots, results, servers, tables, wrk
from vit_api.environment.cores import available_cores
from vit_api.load import uploads

_WARM_UP_S = 0.7
_COMMON = {"cache_size": 0, "worker_stall_s": 3600}
_CURVES = {
    "max_wait_ms": "maximum wait, ms",
    "max_batch_size": "maximum batch size, images",
    "api_servers": "HTTP processes",
}
"""The figure that is plotted, and the label of its axis."""


def curves() -> dict[str, tuple[int, ...]]:
    """Return the values to try of each setting, the default first."""
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
    """The load for each value of a setting.

    Attributes:
        model: The checkpoint to serve.
        upload: What is sent.
        connections: Numbers of connections to try.
        rounds: Turns of each value.
        seconds: Length of a turn.
    """

    model: str
    upload: bytes
    connections: Sequence[int]
    rounds: int
    seconds: float


def measure(plan: Plan, setting: str, values: Sequence[int]) -> list[dict[str, Any]]:
    """Load one server per value in turns; return medians of rate, p50, p99 and ratio to the first value."""
    with contextlib.ExitStack() as stack:
        running = {
            value: stack.enter_context(servers.vit_api(model=plan.model, **_COMMON, **{setting: value}))
            for value in values
        }
        for server in running.values():
            server.pause()
        measured = []
        for connections in plan.connections:
            loads: dict[int, list[wrk.Load]] = {value: [] for value in running}
            for number in range(plan.rounds):
                for value, server in list(running.items())[:: 1 if number % 2 else -1]:
                    loads[value].append(_load(server, plan.upload, connections, plan.seconds))
            measured += [
                _summary(setting, value, connections, loads[value], loads[values[0]]) for value in sorted(values)
            ]
    return measured


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
        wrk.post(url, upload, uploads.RAW, connections=connections, seconds=_WARM_UP_S)
        load = wrk.post(url, upload, uploads.RAW, connections=connections, seconds=seconds)
    load.check(url)
    return load


def table(report: dict[str, Any]) -> str:
    """Return the table of a result: one line per setting and value, one column per number of connections."""
    counts = list(dict.fromkeys(row["connections"] for row in report["results"]))
    rows: dict[tuple[str, int], list[object]] = {}
    for row in report["results"]:
        name = f"{row['value']}, the default" if row["is_default"] else row["value"]
        cells = rows.setdefault((row["setting"], row["value"]), [f"`{row['setting']}`", name])
        cells.append(
            f"{row['ratio']:.2f}: {row['requests_per_s']:,.0f}/s, {row['p50_ms']:.1f} ms, {row['p99_ms']:.1f} ms"
        )
    return tables.markdown(("setting", "value", *map(tables.connections, counts)), rows.values())


def plot(report: dict[str, Any], folder: Path) -> None:
    """Draw the requests/s over the values of a setting, one plot per setting and one line per number of connections."""
    for setting, x in _CURVES.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for result in report["results"]:
            if result["setting"] == setting:
                name = tables.connections(result["connections"])
                lines.setdefault(name, []).append((result["value"], result["ratio"]))
        plots.lines(lines, folder / f"tune_{setting}.png", x=x, y="requests/s relative to the default")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("tune", __doc__)
    parser.add_argument("--model", default="digits", help="checkpoint to serve (default: %(default)s)")
    parser.add_argument("--settings", nargs="+", choices=list(curves()), default=list(curves()), help="which to try")
    parser.add_argument("--connections", type=int, nargs="+", default=(1, 32, 128))
    command_line.add_turns(parser, rounds=5, seconds=1.2)
    options = command_line.parse(parser, arguments)
    wrk.require()
    upload = pictures.noisy_jpeg(65_000)
    plan = Plan(options.model, upload, options.connections, options.rounds, options.seconds)
    measured = []
    for setting in options.settings:
        for result in measure(plan, setting, curves()[setting]):
            measured.append(result)
            print(json.dumps(result), flush=True)
    what = {"model": Path(options.model).name, "upload": "65 KB JPEG, 500 x 375"}
    turns = {"rounds": options.rounds, "seconds": options.seconds}
    results.write(options.out, what | turns | {"results": measured})


if __name__ == "__main__":
    main()
