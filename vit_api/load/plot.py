"""Plots latency over goodput as a PNG. Knows nothing of how they were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from vit_api.load.report import title_of

_SIZE_IN = (8.0, 4.8)
_DPI = 120
_ROOM = 1.12
"""Room for the labels of the outermost points, as a factor of the largest value."""


def save(reports: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Plot reports, one or several that are compared.

    Args:
        reports: By the name in the legend, which is left out for a single one.
        file: The PNG.
    """
    figure = draw(reports)
    figure.savefig(file, dpi=_DPI)
    plt.close(figure)


def draw(reports: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Return the figure: p50 and p99 of each report, one point per load."""
    figure, axes = plt.subplots(figsize=_SIZE_IN, layout="constrained")
    for number, (name, report) in enumerate(reports.items()):
        runs = [run for run in report["runs"] if run["latency_ms"]]
        _add(axes, runs, f"{name}, " if len(reports) > 1 else "", f"C{number}")
    loads = "offered requests/s" if any("rate" in run for report in reports.values() for run in report["runs"]) else ""
    axes.set_title("\n".join(_titles(reports)), fontsize=10)
    axes.set_xlabel(f"Goodput (requests/s); labels: {loads or 'connections'}")
    axes.set_ylabel("Latency (ms, logarithmic)")
    _scale(axes)
    axes.grid(alpha=0.3, which="both")
    if axes.lines:
        axes.legend()
    return figure


def _titles(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if len(reports) == 1:
        return [title_of(report) for report in reports.values()]
    return [f"{name}: {title_of(report)}" for name, report in reports.items()]


def _add(axes: Axes, runs: Sequence[Mapping[str, Any]], prefix: str, colour: str) -> None:
    for rank, style in (("p50", "-o"), ("p99", "--^")):  # markers too, since a single load has no line
        points = [(run["goodput_per_s"], run["latency_ms"][rank]) for run in runs]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, label=prefix + rank)
    for run in runs:
        place = (run["goodput_per_s"], run["latency_ms"]["p99"])
        load = f"{run.get('rate', run.get('concurrency')):g}"
        axes.annotate(load, place, fontsize=8, xytext=(4, 4), textcoords="offset points")


def _scale(axes: Axes) -> None:
    """Set limits with room for the labels, and ticks at 1, 2 and 5 of each decade with plain numbers."""
    box = axes.dataLim
    axes.set_yscale("log")
    if axes.lines:
        axes.set_xlim(0, box.x1 * _ROOM or 1.0)
        axes.set_ylim(box.y0 / 1.5, box.y1 * 1.5)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=50))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
