"""A load test for any server with `POST /predict`.

    python -m benchmarks.load http://127.0.0.1:7860 --concurrency 1,8,32,128
    python -m benchmarks.load http://127.0.0.1:7860 --rate 100,200,400

--concurrency is a closed loop: each connection sends its next request once the previous one is answered. --rate is an
open loop: requests are sent on a schedule and latency is measured from the scheduled time, so that no stall is hidden.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.harness import client, client_processes, machine, pictures, plots, results, scrape, summary

_GENERATED = 64
_MAX_FILES = 1000
_FILE_WIDTH = 120


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the load test of the command line; exit with status 1 if no request was answered."""
    options = _parser().parse_args(arguments)
    if options.json and (reason := results.refusal(options.json)):
        sys.exit(reason)
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    uploads = tuple(_files(options.images) if options.images else pictures.photos(_GENERATED, options.seed))
    if not uploads:
        sys.exit(f"{options.images} has no files: give a folder with images.")
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
        sys.exit("No request was answered: see the errors above.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("url", nargs="?", default="http://127.0.0.1:7860", help="the server's address (default: %(default)s)")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--concurrency", type=_numbers, default="1,8,32,128", help="connections of a closed loop")
    load.add_argument("--rate", type=_numbers, help="requests/s of an open loop, for all processes together")
    add("--arrivals", choices=("poisson", "constant"), default="poisson", help="arrivals of an open loop")
    add("--seconds", type=float, default=10, help="length of each load after its warm-up")
    add("--warm-up", type=float, default=2, help="seconds of each load before its measurement")
    add("--images", type=Path, help="folder of images to send (default: generated photos of 500 x 375)")
    share = parser.add_mutually_exclusive_group()
    share.add_argument("--unique", action="store_true", help="send every upload once (the default)")
    share.add_argument("--repeat-share", type=float, default=0.0, help="share of requests that repeat an upload")
    add("--form", action="store_true", help="send multipart forms (default: raw bodies)")
    add("--header", action="append", default=[], help='additional header, as "Name: value"')
    add("--timeout", type=float, default=60, help="seconds before a request fails")
    add("--goodput-ms", type=float, help="maximum latency of goodput in milliseconds")
    add("--processes", type=int, default=1, help="client processes that share each load")
    add("--seed", type=int, default=0, help="seed of images and arrivals")
    add("--json", type=Path, help="write all figures to this file")
    add("--plot", type=Path, help="plot latency over throughput to this PNG")
    return parser


def _numbers(text: str) -> list[float]:
    numbers = [float(part) for part in text.split(",")]
    if any(number <= 0 for number in numbers):
        raise argparse.ArgumentTypeError("must be positive numbers separated by commas")
    return numbers


def _files(folder: Path) -> Iterator[bytes]:
    """Yield the contents of a folder's files."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file())[:_MAX_FILES]:
        yield path.read_bytes()


def _check_server(url: str) -> None:
    try:
        httpx.get(url, timeout=10)
    except httpx.HTTPError as error:
        sys.exit(f"The server at {url} cannot be reached ({error}): start it, or give another URL.")


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
    before = scrape.read(options.url, plan.headers)
    with _progress(plan, console) as show:
        shifts = client_processes.run(plan, options.processes, show)
    metrics = scrape.means(before, scrape.read(options.url, plan.headers))  # including its warm-up
    kind = "rate" if options.rate else "concurrency"
    return {kind: load} | summary.summarise(shifts, plan.seconds, options.goodput_ms) | {"metrics": metrics}


@contextlib.contextmanager
def _progress(plan: client.Plan, console: Console) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yield the function that updates its number of replies."""
    load = f"{plan.concurrency} connections" if plan.concurrency else f"{plan.rate:g}/s"
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    total_s = plan.warm_up_s + plan.seconds
    start = time.monotonic()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(load, total=total_s, done="")

        def show(replies: int) -> None:
            elapsed_s = min(time.monotonic() - start, total_s)
            bar.update(task, completed=elapsed_s, done=f"{replies:,} replies")

        yield show


def _name(result: dict[str, Any]) -> str:
    return f"{result['rate']:g}/s" if "rate" in result else f"{result['concurrency']:g} conn."


def _table(runs: Sequence[dict[str, Any]]) -> Table:
    table = Table("load", "requests/s", "goodput/s", "p50", "p90", "p99", "p99.9", "queue", "inference", "batch")
    for column in table.columns:
        column.no_wrap, column.justify = True, "right"
    table.add_column("errors")
    has_metrics = any(run["metrics"] for run in runs)
    source = "means from /metrics" if has_metrics else "p50 from response headers"
    table.caption = f"latencies in ms; queue and inference: {source}; batch: mean size"
    for run in runs:
        latency = run["latency_ms"]
        server = run["metrics"] if has_metrics else _medians(run["server"])
        figures = [latency.get(f"p{rank}") for rank in ("50", "90", "99", "99.9")]
        figures += [server.get(name) for name in ("queue_ms", "inference_ms", "mean_batch_size")]
        shown = ("-" if figure is None else f"{figure:.1f}" for figure in figures)
        errors = ", ".join(f"{count} {code}" for code, count in run["errors"].items())
        table.add_row(_name(run), f"{run['requests_per_s']:,}", f"{run['goodput_per_s']:,}", *shown, errors or "none")
    return table


def _medians(server: dict[str, Any]) -> dict[str, Any]:
    """Return the headers' figures as one number each."""
    return {name: figure.get("p50") if isinstance(figure, dict) else figure for name, figure in server.items()}


def _shown(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options for the report, without headers, which may contain a key."""
    hidden = ("json", "plot", "header", "rate" if not options.rate else "concurrency")
    return {name: _plain(value) for name, value in vars(options).items() if name not in hidden}


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Path) else value


if __name__ == "__main__":
    main()
