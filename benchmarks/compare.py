"""This server against others with the same checkpoint and forward pass, on one machine and in one run.

    python -m benchmarks.compare

The others are Triton, mosec, stock LitServe, and no server at all: one process per core that only decodes, with Pillow,
and runs full batches. Triton and mosec have their own environments, which the first run creates (`make peers`). The
machine's speed changes from second to second, so all take turns, and only ratios of adjacent turns count. Caches are
off, and every upload is unique. The client is wrk if installed, else the bundled one; it shares the cores with the
servers. The result is written after each cell, so that an interrupted run keeps what it measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.compare_parts import cells, subjects
from benchmarks.compare_parts.cells import Cell
from benchmarks.compare_parts.subjects import OURS, Load, Subject
from benchmarks.compare_parts.table import table
from benchmarks.harness import command_line, machine, peers, results, wrk
from benchmarks.harness.no_server import NoServer

__all__ = ["main", "table"]

_CONNECTIONS = (1, 32, 128)
_ROUNDS, _TURN_S = 5, 5.0
_QUICK: dict[str, Any] = {"rounds": 1, "seconds": 1.0, "connections": (8,), "cells": ["png-32", "jpeg-65k-224"]}
_WARM_UP_S = 1.0
_SETTLE_S = 0.7
"""The time of a turn apart from its loads, in which the server finishes its requests."""
_START_S = 25.0
"""The time to start and stop all servers with one model."""
_LIMIT_SHARE = 0.5
"""The length of a turn without a server, as a share of a server's."""


def measure(
    of: Sequence[Subject], limit: NoServer, upload: bytes, connections: int, *, rounds: int, seconds: float
) -> dict[str, Any]:
    """Load all in turns; return medians, and the medians of the ratios of adjacent turns."""
    loads: dict[str, list[Load]] = {subject.name: [] for subject in of}
    limits = []
    for number in range(rounds):
        first = number % len(of)
        for subject in (*of[first:], *of[:first]):
            loads[subject.name].append(subject.load(upload, connections, seconds, min(_WARM_UP_S, seconds)))
        limits.append(limit.images_per_s(upload, seconds * _LIMIT_SHARE))
    ours = loads[OURS]
    of_the_limit = [mine.load.rate / its for mine, its in zip(ours, limits, strict=True)]
    return {
        "servers": {name: _figures(turns) for name, turns in loads.items()},
        "limit_per_s": round(statistics.median(limits)),
        "of_the_limit": round(statistics.median(of_the_limit), 3),
        "ratios": {name: _ratios(ours, turns) for name, turns in loads.items() if name != OURS},
    }


def _figures(turns: Sequence[Load]) -> dict[str, float | None]:
    """Return the medians of one server's turns, and the number of errors in all of them."""
    costs = [turn.cpu_us for turn in turns if turn.cpu_us is not None]
    return {
        "requests_per_s": round(statistics.median(turn.load.rate for turn in turns), 1),
        "p50_ms": round(statistics.median(turn.load.p50_ms for turn in turns), 2),
        "p99_ms": round(statistics.median(turn.load.p99_ms for turn in turns), 2),
        "cpu_us_per_request": round(statistics.median(costs), 1) if costs else None,
        "errors": sum(turn.load.failures for turn in turns),
    }


def _ratios(ours: Sequence[Load], theirs: Sequence[Load]) -> dict[str, float | None]:
    """Return the medians over the rounds of ours / theirs; None if a server answered no request in any round."""
    figures: dict[str, Callable[[Load], float | None]] = {
        "rate": lambda turn: turn.load.rate,
        "cpu": lambda turn: turn.cpu_us,
    }
    found = {}
    for name, figure in figures.items():
        pairs = [(figure(mine), figure(their)) for mine, their in zip(ours, theirs, strict=True)]
        ratios = [mine / their for mine, their in pairs if mine is not None and their]
        found[name] = round(statistics.median(ratios), 3) if ratios else None
    return found


def run(options: argparse.Namespace, of: list[peers.Peer]) -> Iterator[dict[str, Any]]:
    """Measure each cell of the options at each number of connections; yield each result."""
    for model, chosen in groupby(_chosen(options), key=lambda cell: cell.model):
        with tempfile.TemporaryDirectory() as folder:
            served = cells.checkpoint(model, Path(folder))
            with (
                subjects.running(served, options.dtype, of) as compared,
                NoServer.running(served, options.dtype) as limit,
            ):
                for cell in chosen:
                    yield from _cell(cell, options, compared, limit)


def _cell(cell: Cell, options: argparse.Namespace, of: list[Subject], limit: NoServer) -> Iterator[dict[str, Any]]:
    upload = cell.make()
    subjects.check_answers(of, upload)
    for count in options.connections:
        seconds = cell.seconds(options.seconds, count)
        what = {"cell": cell.name, "upload": cell.upload, "model": cell.model, "bytes": len(upload)}
        measured = measure(of, limit, upload, count, rounds=options.rounds, seconds=seconds)
        yield what | {"connections": count, "turn_s": seconds} | measured


def _chosen(options: argparse.Namespace) -> list[Cell]:
    return [cell for cell in cells.CELLS if cell.name in options.cells]


def expected_s(options: argparse.Namespace, servers: int) -> float:
    """Return about how long a run with this many servers takes."""
    chosen = _chosen(options)
    total = _START_S * len({cell.model for cell in chosen})
    for cell in chosen:
        for count in options.connections:
            seconds = cell.seconds(options.seconds, count)
            turns = servers * (_WARM_UP_S + seconds + 2 * _SETTLE_S) + _LIMIT_SHARE * seconds
            total += options.rounds * turns
    return total


def _row(result: dict[str, Any]) -> str:
    figures = (
        f"{name} {row['requests_per_s']:,.0f}/s, p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms, "
        f"{row['cpu_us_per_request'] or 0:,.0f} us, {row['errors']} errors"
        for name, row in result["servers"].items()
    )
    what = f"{result['cell']}, {result['connections']} connections"
    return f"{what}: {'; '.join(figures)}; no server {result['limit_per_s']:,}/s"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [cell.name for cell in cells.CELLS]
    parser = command_line.parser("compare", __doc__)
    parser.add_argument("--dtype", default="auto", help="dtype of all (default: %(default)s)")
    parser.add_argument(
        "--cells", nargs="+", choices=names, metavar="CELL", help=f"what to measure: {', '.join(names)}"
    )
    parser.add_argument("--connections", type=int, nargs="+", help="numbers of connections (default: 1 32 128)")
    parser.add_argument("--rounds", type=int, help=f"turns of each measurement (default: {_ROUNDS})")
    parser.add_argument("--seconds", type=float, help=f"length of a turn (default: {_TURN_S:g})")
    parser.add_argument("--quick", action="store_true", help="one short turn of two cells; installs no server")
    options = command_line.parse(parser, arguments)
    full = {"rounds": _ROUNDS, "seconds": _TURN_S, "connections": _CONNECTIONS, "cells": names}
    for name, default in (_QUICK if options.quick else full).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    options = _options(arguments)
    found, missing = subjects.available(may_install=not options.quick)
    versions = subjects.versions(found)
    print("Compared: " + ", ".join(f"{name} ({version})" for name, version in versions.items()))
    for name, reason in missing.items():
        print(f"{name} does not run: {reason}")
    minutes = expected_s(options, len(versions)) / 60
    print(f"{len(os.sched_getaffinity(0))} cores; this takes about {minutes:.0f} minutes.", flush=True)
    unmeasured = [f"{cell.name} x {count}" for cell in _chosen(options) for count in options.connections]
    report: dict[str, Any] = {
        "client": "wrk -t1" if wrk.is_installed() else "bundled",
        "dtype": options.dtype,
        "rounds": options.rounds,
        "warm_up_s": min(_WARM_UP_S, options.seconds),
        "max_batch_size": subjects.MAX_BATCH_SIZE,
        "servers": versions,
        "missing_servers": missing,
    }
    described = machine.describe()
    measured: list[dict[str, Any]] = []
    for result in run(options, found):
        print(_row(result), flush=True)
        measured.append(result)
        unmeasured.remove(f"{result['cell']} x {result['connections']}")
        results.write(options.out, report | {"unmeasured": unmeasured, "results": measured}, described)


if __name__ == "__main__":
    main()
