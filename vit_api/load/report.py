"""What a load test reports: its JSON, a table for people, CSV, and the comparison of two reports."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

Run = Mapping[str, Any]

_RANKS = ("p50", "p90", "p99", "p99.9")
_CSV_FIELDS = (
    *("load", "unit", "requests", "requests_per_s", "goodput_per_s"),
    *(f"{rank}_ms" for rank in _RANKS),
    *("queue_ms", "inference_ms", "mean_batch_size", "errors"),
)


class ReportError(ValueError):
    """A file is no report of a load test, or two reports can't be compared; the message says why."""


def read(file: Path) -> dict[str, Any]:
    """Return a report that `--json` wrote.

    Raises:
        ReportError: The file can't be read, or is none.
    """
    try:
        report = json.loads(file.read_bytes())
        if not all(isinstance(run["latency_ms"], dict) for run in report["runs"]):
            raise TypeError
    except OSError as error:
        raise ReportError(f"{file} can't be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise ReportError(f"{file} is no report of `vit-api load --json`.") from None
    return dict(report)


def write(file: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON."""
    file.write_text(json.dumps(report, indent=1) + "\n")


def name_of(run: Run) -> str:
    """Return the load of a run, for people."""
    return f"{run['rate']:g}/s" if "rate" in run else f"{run['concurrency']:g} conn."


def title_of(report: Mapping[str, Any]) -> str:
    """Return where and when a report was measured, and of which model."""
    target = report.get("target", {})
    parts = (target.get("url"), target.get("model"), report.get("date"))
    return ", ".join(str(part) for part in parts if part)


def table(runs: Sequence[Run]) -> Table:
    """Return a table of the runs."""
    made = Table("load", "requests/s", "goodput/s", "p50", "p90", "p99", "p99.9", "queue", "inference", "batch")
    for column in made.columns:
        column.no_wrap, column.justify = True, "right"
    made.add_column("errors")
    has_metrics = any(run["metrics"] for run in runs)
    source = "means from /metrics" if has_metrics else "p50 from response headers"
    made.caption = f"latencies in ms; queue and inference: {source}; batch: mean size"
    for run in runs:
        figures = [run["latency_ms"].get(rank) for rank in _RANKS]
        server = run["metrics"] if has_metrics else _medians(run["server"])
        figures += [server.get(name) for name in ("queue_ms", "inference_ms", "mean_batch_size")]
        shown = ("-" if figure is None else f"{figure:.1f}" for figure in figures)
        made.add_row(name_of(run), f"{run['requests_per_s']:,}", f"{run['goodput_per_s']:,}", *shown, _errors(run))
    return made


def write_csv(file: Path, runs: Sequence[Run]) -> None:
    """Write a line for each run; an empty field is a figure that the server does not report."""
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, _CSV_FIELDS)
        writer.writeheader()
        for run in runs:
            server = run["metrics"] or _medians(run["server"])
            figures = {name: server.get(name) for name in ("queue_ms", "inference_ms", "mean_batch_size")}
            figures |= {f"{rank}_ms": run["latency_ms"].get(rank) for rank in _RANKS}
            figures |= {name: run[name] for name in ("requests", "requests_per_s", "goodput_per_s")}
            unit = "requests/s" if "rate" in run else "connections"
            load = f"{run.get('rate', run.get('concurrency')):g}"
            writer.writerow(figures | {"load": load, "unit": unit, "errors": sum(run["errors"].values())})


def comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """Return a table of the loads that both reports have.

    Raises:
        ReportError: They have none in common.
    """
    pairs = list(_pairs(before["runs"], after["runs"]))
    if not pairs:
        raise ReportError("The two reports have no load in common: measure with the same --concurrency or --rate.")
    made = Table("load", "", "before", "after", "change", title="before: " + title_of(before))
    for column in made.columns[2:]:
        column.no_wrap, column.justify = True, "right"
    made.caption = "latencies in ms; after: " + title_of(after)
    for old, new in pairs:
        rows = [("goodput/s", old["goodput_per_s"], new["goodput_per_s"])]
        rows += [(rank, old["latency_ms"].get(rank), new["latency_ms"].get(rank)) for rank in ("p50", "p99")]
        rows.append(("errors", sum(old["errors"].values()), sum(new["errors"].values())))
        for number, (what, was, now) in enumerate(rows):
            made.add_row(
                "" if number else name_of(new), what, *(_shown(figure) for figure in (was, now)), _change(was, now)
            )
    return made


def _pairs(before: Sequence[Run], after: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    earlier = {name_of(run): run for run in before}
    return ((earlier[name_of(run)], run) for run in after if name_of(run) in earlier)


def _shown(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:,.4g}" if figure < 1000 else f"{figure:,.0f}"


def _change(was: float | None, now: float | None) -> str:
    return "" if not was or now is None else f"{(now - was) / was:+.0%}"


def _errors(run: Run) -> str:
    return ", ".join(f"{count} {code}" for code, count in run["errors"].items()) or "none"


def _medians(server: Run) -> dict[str, Any]:
    """Return the headers' figures as one number each."""
    return {name: figure.get("p50") if isinstance(figure, dict) else figure for name, figure in server.items()}
