"""Plots results as PNGs or SVGs. Knows nothing of how they were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_SIZE_IN = (7.0, 4.2)
_DPI = 110


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], file: Path, *, x: str, y: str, is_log: bool = False
) -> None:
    """Plot named lines."""
    figure, axes = plt.subplots(figsize=_SIZE_IN)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel=x, ylabel=y, yscale="log" if is_log else "linear")
    _save(figure, axes, file)


def panels(
    series: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    file: Path,
    *,
    x: str,
    events: Mapping[str, float],
) -> None:
    """Plot steps over one axis, a panel below the other.

    Args:
        series: The named lines of each panel, by what its axis shows.
        file: The file to write.
        x: What the common axis shows.
        events: Where vertical lines are drawn, by what they mean.
    """
    width, height = _SIZE_IN
    figure, axes = plt.subplots(len(series), sharex=True, figsize=(width, height * len(series) / 2))
    for panel, (y, its_lines) in zip(axes, series.items(), strict=True):
        for name, points in its_lines.items():
            panel.step(*zip(*points, strict=True), where="post", label=name)
        for at in events.values():
            panel.axvline(at, color="grey", linewidth=0.8, linestyle=":")
        panel.set(ylabel=y, ylim=(0, None))
        panel.grid(alpha=0.3)
        if len(its_lines) > 1:
            panel.legend()
    for name, at in events.items():
        axes[0].annotate(name, (at, 1), xycoords=("data", "axes fraction"), xytext=(2, 3), textcoords="offset points")
    axes[-1].set(xlabel=x)
    figure.tight_layout()
    # The same result gives the same file.
    with plt.rc_context({"svg.hashsalt": file.stem}):
        figure.savefig(file, dpi=_DPI, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def _save(figure: Any, axes: Axes, file: Path) -> None:
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=_DPI)
    plt.close(figure)
