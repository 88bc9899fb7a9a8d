"""How the batching policy behaves: batch sizes and latency by offered load.

    python -m benchmarks.batching

An open loop with Poisson arrivals sends the same load to

- this server, which dispatches a batch as soon as no other image is incoming, and after at most 5 ms,
- the same with a fixed window of 5 ms, like most servers, and
- the same without waiting: a batch is all that is queued when the device is idle.
"""

from __future__ import annotations

import contextlib
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import command_line, pictures, plots, results, servers, tables
from vit_api.load import client, client_processes, summary

_RATES = (50, 200, 400, 800, 1200)
_WINDOW_MS = 5
_COMMON = {"cache_size": 0, "cpu_threads": 1}
_FIXED_WINDOW = ("-m", "benchmarks.baselines.fixed_window")


@contextlib.contextmanager
def _policies() -> Iterator[dict[str, servers.Server]]:
    with contextlib.ExitStack() as stack:
        yield {
            "this server": stack.enter_context(servers.vit_api(**_COMMON, max_wait_ms=_WINDOW_MS)),
            "fixed window": stack.enter_context(servers.variant(_FIXED_WINDOW, {**_COMMON, "max_wait_ms": _WINDOW_MS})),
            "no waiting": stack.enter_context(servers.vit_api(**_COMMON, max_wait_ms=0)),
        }


def run(rates: Sequence[float], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Load the three in turns at each rate; return one result per rate and policy."""
    results = []
    with _policies() as policies:
        for rate in rates:
            shifts: dict[str, list[client.Shift]] = {name: [] for name in policies}
            for number in range(rounds):
                for name, server in policies.items():
                    shifts[name] += client_processes.run(_plan(server, rate, seconds, seed=number))
            for name, its_shifts in shifts.items():
                results.append({"policy": name, "rate": rate} | _result(its_shifts, rate))
                print(_row(results[-1]), flush=True)
    return results


def _plan(server: servers.Server, rate: float, seconds: float, seed: int) -> client.LoadPlan:
    uploads = (pictures.small_png(),)
    return client.LoadPlan(server.url + "/predict", uploads, rate=rate, warm_up_s=0.5, seconds=seconds, seed=seed)


def _result(shifts: Sequence[client.Shift], rate: float) -> dict[str, Any]:
    replies = [reply for shift in shifts for reply in shift.replies]
    failed = sum(reply.outcome != "ok" for reply in replies)
    if failed:
        raise RuntimeError(f"{failed} of {len(replies)} requests failed at {rate:g}/s.")
    latencies = [summary.percentiles([(r.done_s - r.intended_s) * 1000 for r in shift.replies]) for shift in shifts]
    images = Counter(reply.batch_size for reply in replies)
    batches = {size: images[size] / size for size in sorted(images)}
    return {
        "requests": len(replies),
        "p50_ms": round(statistics.median(latency["p50"] for latency in latencies), 2),
        "p99_ms": round(statistics.median(latency["p99"] for latency in latencies), 2),
        "mean_batch_size": round(len(replies) / sum(batches.values()), 2),
        "batches": {str(size): round(count) for size, count in batches.items()},
    }


def _row(result: dict[str, Any]) -> str:
    return (
        f"{result['rate']:5g}/s {result['policy']:13} p50 {result['p50_ms']:6.2f} ms, p99 {result['p99_ms']:7.2f} ms, "
        f"mean batch {result['mean_batch_size']:.2f}"
    )


def table(report: dict[str, Any]) -> str:
    """Return the table of a result: one line per rate and policy."""
    head = ("requests/s", "policy", "p50", "p99", "mean batch", "batches by size")
    rows = []
    for result in report["results"]:
        sizes = _histogram({int(size): count for size, count in result["batches"].items()})
        latency = (f"{result['p50_ms']:.1f} ms", f"{result['p99_ms']:.1f} ms")
        rows.append((f"{result['rate']:g}", result["policy"], *latency, result["mean_batch_size"], sizes))
    return tables.markdown(head, rows)


def _histogram(batches: dict[int, int]) -> str:
    """Return the share of batches in each range of sizes that has any."""
    total = sum(batches.values())
    ranges = ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 32))
    shares = {bounds: sum(n for size, n in batches.items() if bounds[0] <= size <= bounds[1]) for bounds in ranges}
    name = {(low, high): str(low) if low == high else f"{low}-{high}" for low, high in ranges}
    return ", ".join(f"{name[bounds]}: {share / total:.0%}" for bounds, share in shares.items() if share)


def plot(report: dict[str, Any], folder: Path) -> None:
    """Draw p50 and mean batch size over the offered load, one line per policy."""
    for value, y in (("p50_ms", "p50 latency, ms"), ("mean_batch_size", "mean batch size, images")):
        lines: dict[str, list[tuple[float, float]]] = {}
        for result in report["results"]:
            lines.setdefault(result["policy"], []).append((result["rate"], result[value]))
        plots.lines(lines, folder / f"batching_{value}.png", x="offered requests/s", y=y)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("batching", __doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=_RATES, help="offered requests/s")
    command_line.add_turns(parser, rounds=5, seconds=4)
    options = command_line.parse(parser, arguments)
    measured = run(options.rates, options.rounds, options.seconds)
    results.write(options.out, {"window_ms": _WINDOW_MS, "model": "digits", "results": measured})


if __name__ == "__main__":
    main()
