"""Runs the loads of a load test, one after the other, with a progress bar."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vit_api.load import client, client_processes, report, scrape, summary, uploads

_GENERATED = 64
_FILE_WIDTH = 120


class LoadError(Exception):
    """A load test can't be run; the message says why."""


def new_console() -> Console:
    """Return the console that a load test prints to."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Put a server under each load in turn; return the report.

    Raises:
        LoadError: The server can't be reached, or there is nothing to send.
    """
    bodies = tuple(uploads.files_in(options.images) if options.images else uploads.photos(_GENERATED, options.seed))
    if not bodies:
        raise LoadError(f"{options.images} has no files: give a folder with images.")
    headers = headers_of(options)
    target = _target(options.url, headers)
    date = time.strftime("%Y-%m-%d %H:%M")
    runs = []
    for load in options.rate or options.concurrency:
        result = _measure(_plan(options, bodies, load, headers), options, load, console)
        runs.append(result)
        for warning in summary.warnings(result):
            console.print(f"[yellow]{report.name_of(result)}: {warning}[/yellow]")
    return {"date": date, "target": target, "options": _shown(options), "runs": runs}


def headers_of(options: argparse.Namespace) -> dict[str, str]:
    """Return the additional headers of the command line."""
    return {name.strip(): value.strip() for name, _, value in (item.partition(":") for item in options.header)}


def _target(url: str, headers: dict[str, str]) -> dict[str, Any]:
    """Return what is known of the server; of others than ours, only the URL."""
    try:
        response = httpx.get(url.rstrip("/") + "/info", headers=headers, timeout=10)
        info = response.json() if response.status_code == httpx.codes.OK else {}
    except httpx.HTTPError as error:
        raise LoadError(f"The server at {url} cannot be reached ({error}): start it, or give another URL.") from None
    except ValueError:
        info = {}
    known = info if isinstance(info, dict) else {}
    return {"url": url, "model": known.get("model"), "version": known.get("version")}


def _plan(
    options: argparse.Namespace, bodies: tuple[bytes, ...], load: float, headers: dict[str, str]
) -> client.LoadPlan:
    return client.LoadPlan(
        url=options.url.rstrip("/") + "/predict",
        pictures=bodies,
        concurrency=None if options.rate else round(load),
        rate=load,
        is_poisson=options.arrivals == "poisson",
        warm_up_s=options.warm_up,
        seconds=options.seconds,
        repeat_share=options.repeat_share,
        is_form=options.form,
        headers=headers,
        timeout_s=options.timeout,
        seed=options.seed,
    )


def _measure(plan: client.LoadPlan, options: argparse.Namespace, load: float, console: Console) -> dict[str, Any]:
    before = scrape.read(options.url, plan.headers)
    with _progress(plan, console) as show:
        shifts = client_processes.run(plan, options.processes, show)
    metrics = scrape.means(before, scrape.read(options.url, plan.headers))  # including its warm-up
    kind = "rate" if options.rate else "concurrency"
    return {kind: load} | summary.summarise(shifts, plan.seconds, options.goodput_ms) | {"metrics": metrics}


@contextlib.contextmanager
def _progress(plan: client.LoadPlan, console: Console) -> Iterator[Callable[[int], None]]:
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


def _shown(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options for the report, without headers, which may contain a key."""
    hidden = (
        "json",
        "csv",
        "plot",
        "compare",
        "header",
        "run",
        "parser",
        "rate" if not options.rate else "concurrency",
    )
    shown = {name: value for name, value in vars(options).items() if name not in hidden}
    if options.images:
        shown["images"] = options.images.name  # the path may be private
    return shown
