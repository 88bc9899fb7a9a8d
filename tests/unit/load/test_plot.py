"""The plot of a load test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from vit_api.load import plot


def _report(scale: float, loads: tuple[float, ...] = (1, 8, 32, 128)) -> dict[str, Any]:
    runs = [
        {
            "concurrency": load,
            "goodput_per_s": 100 * scale * (number + 1),
            "latency_ms": {"p50": 0.7 * scale * load, "p99": 1.9 * scale * load},
        }
        for number, load in enumerate(loads)
    ]
    return {"date": "2026-11-27 14:00", "target": {"url": "http://127.0.0.1:7860", "model": "digits"}, "runs": runs}


@pytest.fixture(
    params=[
        pytest.param({"after": _report(1)}, id="one"),
        pytest.param({"before": _report(1), "after": _report(37)}, id="two"),
        pytest.param({"after": _report(0.013, (3,))}, id="one point"),
    ]
)
def figure(request: pytest.FixtureRequest) -> Iterator[Figure]:
    """Draw a plot."""
    made = plot.draw(request.param)
    made.canvas.draw()
    yield made
    plt.close(made)


def test_the_title_says_what_was_measured(figure: Figure) -> None:
    """With URL, model and date; the axes have units."""
    (axes,) = figure.axes
    assert "http://127.0.0.1:7860, digits, 2026-11-27 14:00" in axes.get_title()
    assert "requests/s" in axes.get_xlabel()
    assert "ms" in axes.get_ylabel()


def test_both_axes_have_labelled_ticks_within_the_range(figure: Figure) -> None:
    """Also on the logarithmic axis of a range below a decade, in plain numbers."""
    (axes,) = figure.axes
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        shown = [tick.label1.get_text() for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        assert len(shown) >= 2
        assert all(float(text.replace(",", "")) >= 0 for text in shown)


def test_p50_and_p99_differ_without_a_line(figure: Figure) -> None:
    """By their markers, since a single load is one point of each."""
    (axes,) = figure.axes
    markers = {line.get_label(): line.get_marker() for line in axes.lines}
    for rank in ("p50", "p99"):
        assert len({marker for label, marker in markers.items() if str(label).endswith(rank)}) == 1
    assert len(set(markers.values())) == 2


def test_all_labels_are_inside(figure: Figure) -> None:
    """Those of the points within the axes, all others within the picture."""
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for label in axes.texts:
        box = label.get_window_extent(renderer)
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
    for label in (axes.title, axes.xaxis.label, axes.yaxis.label):
        box = label.get_window_extent(renderer)
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
