"""Plots results as PNGs. Knows nothing of how they were measured."""

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


def _save(figure: Any, axes: Axes, file: Path) -> None:
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=_DPI)
    plt.close(figure)
