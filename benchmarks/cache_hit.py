"""Throughput of cache hits, against minimal Python servers.

    python -m benchmarks.cache_hit

One HTTP process per server; wrk with one thread and 32 connections. The reference for raw bodies is a bare ASGI app
that reads, hashes, looks up and answers; for forms, a FastAPI endpoint that hashes the upload. The machine's speed
changes from second to second, so the two take turns, and only the ratio of neighbours counts.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import command_line, pictures, results, servers, tables, wrk

_CONNECTIONS = 32


@dataclass(frozen=True)
class Case:
    """An upload, how it is sent, and the ratio to the reference that is the goal."""

    name: str
    body: bytes
    content_type: str
    goal: float


def cases() -> list[Case]:
    """Return a 700-byte PNG and a 65 KB JPEG, each raw and as a form."""
    png, jpeg = pictures.small_png(), pictures.noisy_jpeg(65_000)
    return [
        Case("raw PNG", png, wrk.RAW, 0.6),
        Case("raw JPEG", jpeg, wrk.RAW, 0.85),
        Case("form PNG", wrk.as_form(png), wrk.FORM, 3.0),
        Case("form JPEG", wrk.as_form(jpeg), wrk.FORM, 2.0),
    ]


def measure(case: Case, ours: servers.Server, reference: servers.Server, rounds: int, seconds: float) -> dict[str, Any]:
    """Load the two in turns; return rates, CPU time per request, and the ratio of the rates."""
    runs: dict[str, list[tuple[float, float]]] = {"ours": [], "reference": []}
    for number in range(rounds):
        pair = [("ours", ours), ("reference", reference)]
        for name, server in pair if number % 2 else reversed(pair):
            runs[name].append(_load(server, case, seconds))
    rates = {name: [rate for rate, _ in pairs] for name, pairs in runs.items()}
    costs = {name: statistics.median(cost for _, cost in pairs) for name, pairs in runs.items()}
    ratios = [mine / theirs for mine, theirs in zip(rates["ours"], rates["reference"], strict=True)]
    return {
        "case": case.name,
        "bytes": len(case.body),
        "requests_per_s": {name: round(statistics.median(values)) for name, values in rates.items()},
        "cpu_us_per_request": {name: round(cost * 1e6, 1) for name, cost in costs.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "goal": case.goal,
    }


def _load(server: servers.Server, case: Case, seconds: float) -> tuple[float, float]:
    before = server.cpu_seconds()
    load = wrk.post(server.url + "/predict", case.body, case.content_type, connections=_CONNECTIONS, seconds=seconds)
    load.check(f"{case.name} at {server.url}")
    return load.rate, (server.cpu_seconds() - before) / load.requests


def run(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Measure every case; return one result per case."""
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(servers.vit_api(api_servers=1))
        bare = stack.enter_context(servers.uvicorn("benchmarks.baselines.bare_asgi:app", "/"))
        fastapi = stack.enter_context(servers.uvicorn("benchmarks.baselines.fastapi_upload:app", "/openapi.json"))
        measured = []
        for case in cases():
            result = measure(case, ours, bare if case.name.startswith("raw") else fastapi, rounds, seconds)
            measured.append(result)
            print(_row(result), flush=True)
    return measured


def _row(result: dict[str, Any]) -> str:
    rates, costs = result["requests_per_s"], result["cpu_us_per_request"]
    return (
        f"{result['case']:10} {rates['ours']:7,}/s against {rates['reference']:7,}/s, "
        f"{costs['ours']:6.1f} us of CPU against {costs['reference']:6.1f}: "
        f"ratio {result['ratio']:.2f}, goal {result['goal']}"
    )


def table(report: dict[str, Any]) -> str:
    """Return the table of a result: one line per case."""
    head = ("upload", "hits/s", "reference/s", "CPU per request", "reference", "ratio, median of neighbours", "goal")
    rows = []
    for result in report["results"]:
        rates, costs = result["requests_per_s"], result["cpu_us_per_request"]
        cpu = [f"{costs[name]:.0f} us" for name in ("ours", "reference")]
        what = f"{result['case']}, {result['bytes']:,} bytes"
        rows.append((what, f"{rates['ours']:,}", f"{rates['reference']:,}", *cpu, result["ratio"], result["goal"]))
    return tables.markdown(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("cache_hit", __doc__)
    command_line.add_turns(parser, rounds=31, seconds=1)
    options = command_line.parse(parser, arguments)
    wrk.require()
    measured = run(options.rounds, options.seconds)
    results.write(options.out, {"rounds": options.rounds, "seconds": options.seconds, "results": measured})


if __name__ == "__main__":
    main()
