"""Judges which goals a result meets. Pure: figures in, verdicts out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.gpu_parts.part import FLOP_PER_IMAGE, MAX_BATCH_SIZE

ALONE_PER_S = 9_000
PIPELINE_SHARE = 0.95
SERVED_SHARE = 0.6
P99_MS = 40
HARDWARE = "one H100 with 16 cores"


class _Goal(NamedTuple):
    """A goal on `HARDWARE`.

    Attributes:
        name: The measured quantity.
        bounds: The bounds, in increasing difficulty.
        is_maximum: Whether they are maxima; otherwise they are minima.
    """

    name: str
    bounds: tuple[float, ...]
    is_maximum: bool = False


_ALONE = _Goal(f"(a) images/s of the model only, batches of {MAX_BATCH_SIZE}", (ALONE_PER_S, 12_000))
_PEAK = _Goal("(a) share of the matrix peak measured on this GPU", (0.55,))
_PIPELINE = _Goal("(b) share of the model only", (PIPELINE_SHARE,))
_SERVED = _Goal("(c) peak over HTTP, share of the model only", (SERVED_SHARE, 0.8))
_LATENCY = _Goal("(c) p99 in ms at 80% of the peak", (P99_MS,), is_maximum=True)


def verdicts(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the figure for each goal and bound, and whether it is met; None if it was not measured.

    Args:
        results: The result of each part, by name.
    """
    return [
        {
            "goal": goal.name,
            "at_most" if goal.is_maximum else "at_least": bound,
            "found": found,
            "met": None if found is None else (found <= bound if goal.is_maximum else found >= bound),
        }
        for goal, found in _found(results)
        for bound in goal.bounds
    ]


def best_alone(results: dict[str, Any]) -> float | None:
    """Return the images/s of the best engine in the dtype of `auto` at the largest batch; None if not measured."""
    alone = results.get("alone", {})
    rows = [row for row in alone.get("rows", []) if row["engine"] != "transformers" and row["dtype"] == alone["dtype"]]
    largest = max((row["batch"] for row in rows), default=0)
    return max((row["images_per_s"] for row in rows if row["batch"] == largest), default=None)


def _found(results: dict[str, Any]) -> Iterator[tuple[_Goal, float | None]]:
    alone = best_alone(results)
    yield _ALONE, alone
    tflops = results.get("alone", {}).get("matrix_peak_tflops")
    yield _PEAK, None if alone is None or not tflops else round(alone * FLOP_PER_IMAGE / (tflops * 1e12), 3)
    pipelined = [row for row in results.get("pipeline", {}).get("rows", []) if row["policy"] == "pipelined"]
    yield _PIPELINE, pipelined[0]["share_of_alone"] if pipelined else None
    served = results.get("served", {})
    peak = served.get("images_per_s")
    yield _SERVED, None if alone is None or peak is None else round(peak / alone, 3)
    yield _LATENCY, served.get("at_80_percent", {}).get("p99_ms")
