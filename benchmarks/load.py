"""A load test against any server that answers `POST /predict`.

    python -m benchmarks.load http://127.0.0.1:7860 --concurrency 1,8,32,128
    python -m benchmarks.load http://127.0.0.1:7860 --rate 100,200,400

With --concurrency the loop is closed: each connection sends its next request once the last is answered. With --rate it
is open: requests go at their own times, and latency counts from those times, so that no stall is hidden.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from ctypes import c_long
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import client, machine, pictures, plots, summary

_POLL_S = 0.1
_GENERATED = 64
_MOST_FILES = 1000
_FILE_WIDTH = 120
_counters: Any = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the load test of the command line; exit with status 1 if nothing was answered."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    uploads = tuple(_files(options.images) if options.images else pictures.photos(_GENERATED, options.seed))
    if not uploads:
        sys.exit(f"error: no files in {options.images}")
    _check_server(options.url)
    runs = []
    for load in options.rate or options.concurrency:
        result = _measure(_plan(options, uploads, load), options, load, console)
        runs.append(result)
        for warning in summary.warnings(result):
            console.print(f"[yellow]{_name(result)}: {warning}[/yellow]")
    console.print(_table(runs))
    report = {"machine": machine.describe(), "options": _shown(options), "runs": runs}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plots.latency_over_throughput(runs, options.plot)
    if not any(run["goodput_per_s"] for run in runs):
        sys.exit("error: no request was answered")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("url", nargs="?", default="http://127.0.0.1:7860", help="the server's address (default: %(default)s)")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--concurrency", type=_numbers, default="1,8,32,128", help="connections of a closed loop")
    load.add_argument("--rate", type=_numbers, help="requests/s of an open loop, of all processes together")
    add("--arrivals", choices=("poisson", "constant"), default="poisson", help="of an open loop")
    add("--seconds", type=float, default=10, help="of each load, after its warm-up")
    add("--warm-up", type=float, default=2, help="seconds of each load that don't count")
    add("--images", type=Path, help="a folder with files to send (default: generated photos of 500 x 375)")
    share = parser.add_mutually_exclusive_group()
    share.add_argument("--unique", action="store_true", help="send no upload twice (the default)")
    share.add_argument("--repeat-share", type=float, default=0.0, help="share of requests that repeat an upload")
    add("--form", action="store_true", help="send multipart forms (default: raw bodies)")
    add("--header", action="append", default=[], help='to send along: "Name: value"')
    add("--timeout", type=float, default=60, help="seconds that a request may take")
    add("--goodput-ms", type=float, help="count only answers within so many milliseconds as goodput")
    add("--processes", type=int, default=1, help="client processes that share each load")
    add("--seed", type=int, default=0, help="of pictures and arrivals")
    add("--json", type=Path, help="write all figures here")
    add("--plot", type=Path, help="draw latency over throughput into this PNG")
    return parser


def _numbers(text: str) -> list[float]:
    numbers = [float(part) for part in text.split(",")]
    if any(number <= 0 for number in numbers):
        raise argparse.ArgumentTypeError("must be numbers above 0, with commas in between")
    return numbers


def _files(folder: Path) -> Iterator[bytes]:
    """Yield the contents of a folder's files."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file())[:_MOST_FILES]:
        yield path.read_bytes()


def _check_server(url: str) -> None:
    try:
        httpx.get(url, timeout=10)
    except httpx.HTTPError as error:
        sys.exit(f"error: {url} can't be reached: {error}")


def _plan(options: argparse.Namespace, uploads: tuple[bytes, ...], load: float) -> client.Plan:
    return client.Plan(
        url=options.url.rstrip("/") + "/predict",
        pictures=uploads,
        concurrency=None if options.rate else round(load),
        rate=load,
        is_poisson=options.arrivals == "poisson",
        warm_up_s=options.warm_up,
        seconds=options.seconds,
        repeat_share=options.repeat_share,
        is_form=options.form,
        headers={name.strip(): value.strip() for name, _, value in (item.partition(":") for item in options.header)},
        timeout_s=options.timeout,
        seed=options.seed,
    )


def _measure(plan: client.Plan, options: argparse.Namespace, load: float, console: Console) -> dict[str, Any]:
    shifts = run(plan, options.processes, console)
    kind = "rate" if options.rate else "concurrency"
    return {kind: load} | summary.summarise(shifts, plan.seconds, options.goodput_ms)


def run(plan: client.Plan, processes: int = 1, console: Console | None = None) -> list[client.Shift]:
    """Load the server with client processes, and show how far they are; return what they did."""
    plans = list(_shares(plan, processes))
    context = multiprocessing.get_context("spawn")
    counters = context.Array(c_long, len(plans), lock=False)  # each process writes its own
    with ProcessPoolExecutor(len(plans), context, _set_counters, (counters,)) as pool:
        shifts = [pool.submit(_work, number, share) for number, share in enumerate(plans)]
        if console is not None:
            _show(plan, shifts, counters, console)
        return [shift.result() for shift in shifts]


def _shares(plan: client.Plan, processes: int) -> Iterator[client.Plan]:
    """Share a load among processes; a closed loop needs a connection for each."""
    if plan.concurrency is None:
        for number in range(processes):
            yield dataclasses.replace(plan, rate=plan.rate / processes, seed=plan.seed + number)
        return
    processes = min(processes, plan.concurrency)
    for number in range(processes):
        connections = plan.concurrency // processes + (number < plan.concurrency % processes)
        yield dataclasses.replace(plan, concurrency=connections, seed=plan.seed + number)


def _set_counters(counters: Any) -> None:
    global _counters  # noqa: PLW0603 - the one way into a pool's processes
    _counters = counters


def _work(number: int, plan: client.Plan) -> client.Shift:
    def progress() -> None:
        _counters[number] += 1

    return client.work(plan, progress)


def _show(plan: client.Plan, shifts: Sequence[Future[client.Shift]], counters: Any, console: Console) -> None:
    load = f"{plan.concurrency} connections" if plan.concurrency else f"{plan.rate:g}/s"
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    total_s = plan.warm_up_s + plan.seconds
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(load, total=total_s, done="")
        start = time.monotonic()
        while not all(shift.done() for shift in shifts):
            elapsed_s = time.monotonic() - start
            bar.update(task, completed=min(elapsed_s, total_s), done=f"{sum(counters):,} replies")
            time.sleep(_POLL_S)


def _name(result: dict[str, Any]) -> str:
    return f"{result['rate']:g}/s" if "rate" in result else f"{result['concurrency']:g} conn."


def _table(runs: Sequence[dict[str, Any]]) -> Table:
    table = Table("load", "requests/s", "goodput/s", "p50", "p90", "p99", "p99.9", "queue", "inference", "batch")
    for column in table.columns:
        column.no_wrap, column.justify = True, "right"
    table.add_column("errors")
    table.caption = "latencies in ms; queue and inference: p50 of what the server says; batch: mean size"
    for run in runs:
        latency, server = run["latency_ms"], run["server"]
        times = (server.get(name, {}).get("p50") for name in ("queue_ms", "inference_ms"))
        figures = [*(latency.get(f"p{rank}") for rank in ("50", "90", "99", "99.9")), *times]
        figures.append(server.get("mean_batch_size"))
        shown = ("-" if figure is None else f"{figure:.1f}" for figure in figures)
        errors = ", ".join(f"{count} {code}" for code, count in run["errors"].items())
        table.add_row(_name(run), f"{run['requests_per_s']:,}", f"{run['goodput_per_s']:,}", *shown, errors or "none")
    return table


def _shown(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options for the report; headers may hold a key."""
    hidden = ("json", "plot", "header", "rate" if not options.rate else "concurrency")
    return {name: _plain(value) for name, value in vars(options).items() if name not in hidden}


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Path) else value


if __name__ == "__main__":
    main()
