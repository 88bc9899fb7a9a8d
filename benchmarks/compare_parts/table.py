"""The tables of a comparison: ratios of adjacent turns, and the figures of each server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.harness import tables

_NONE = "-"


def table(report: dict[str, Any]) -> str:
    """Return the tables of a result, and which servers were compared."""
    return "\n\n".join((_ratios(report), _figures(report), _servers(report)))


def _ratios(report: dict[str, Any]) -> str:
    _, *others = report["servers"]
    columns = [f"{what} {name}" for name in others for what in ("rate /", "CPU /")]
    rows = []
    for result in report["results"]:
        ratios = result["ratios"]
        cells = [_ratio(ratios[name][what], what) for name in others for what in ("rate", "cpu")]
        of_the_limit = _ratio(result["of_the_limit"], "limit")
        rows.append((result["upload"], result["model"], result["connections"], *cells, of_the_limit))
    return tables.markdown(("upload", "model", "connections", *columns, "rate / no server"), rows)


def _ratio(ratio: float | None, what: str) -> str:
    """Return a ratio of ours to another's, in bold where we lose."""
    if ratio is None:
        return _NONE
    loses = ratio < 1 if what == "rate" else what == "cpu" and ratio > 1
    return f"**{ratio:.2f}**" if loses else f"{ratio:.2f}"


def _figures(report: dict[str, Any]) -> str:
    head = ("upload", "model", "connections", "server", "requests/s", "p50", "p99", "CPU per request", "errors")
    return tables.markdown(head, (row for result in report["results"] for row in _rows(result)))


def _rows(result: dict[str, Any]) -> Iterator[tables.Row]:
    cell = (result["upload"], result["model"], result["connections"])
    for name, figures in result["servers"].items():
        cpu_us = figures["cpu_us_per_request"]
        cpu = _NONE if cpu_us is None else f"{cpu_us:,.0f} us"
        latencies = (f"{figures[name]:,.1f} ms" for name in ("p50_ms", "p99_ms"))
        yield *cell, name, f"{figures['requests_per_s']:,.0f}", *latencies, cpu, figures["errors"]
    yield *cell, "no server", f"{result['limit_per_s']:,}", _NONE, _NONE, _NONE, _NONE


def _servers(report: dict[str, Any]) -> str:
    compared = ", ".join(f"{name} ({version})" for name, version in report["servers"].items())
    lines = [f"Servers: {compared}."]
    lines += [f"{name} did not run: {reason}" for name, reason in report["missing_servers"].items()]
    if report["unmeasured"]:
        lines.append(f"The run was cut short; not measured: {', '.join(report['unmeasured'])}.")
    return " ".join(lines)
