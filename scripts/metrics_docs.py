"""Write docs/metrics.md from the metrics' definitions: `python -m scripts.metrics_docs`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vit_api import metrics
from vit_api.metrics import Metric

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"

_START = """\
# Metrics

`GET /metrics` tells them in Prometheus' text format, or OpenMetrics' to those who ask for it. Whichever HTTP process is
asked, it tells of the whole server: counts are kept in shared memory, and go on when a process dies and is replaced.
With `VIT_API_API_KEYS`, scrapers need a key, unless `VIT_API_METRICS_PUBLIC` is set.

This page is made by `python -m scripts.metrics_docs`. `deploy/prometheus/` has alerts, and `deploy/grafana/` a
dashboard.
"""

_PARTS = (
    ("Requests and the model", (*metrics.COUNTED, *metrics.SERVER)),
    ("Cache", (*metrics.CACHE, *metrics.REDIS)),
    ("Processes", metrics.PROCESS),
    ("GPUs", metrics.GPU),
)
_NOTES = {
    "Cache": "None of them is there with `VIT_API_CACHE_SIZE=0`; those of Redis only with `VIT_API_REDIS_URL`.",
    "Processes": "`process` is `main`, `http-0`, `http-1` ..., `worker-0` ...",
    "GPUs": "Only where there is a GPU and its driver tells.",
}


def page() -> str:
    """Return the page's text."""
    parts = [_START]
    for title, members in _PARTS:
        note = f"{_NOTES[title]}\n\n" if title in _NOTES else ""
        parts.append(f"## {title}\n\n{note}{_table(members)}")
    ends = ", ".join(f"{end:g}" for end in metrics.TIMES_S)
    sizes = ", ".join(f"{end:g}" for end in metrics.SIZES)
    parts.append(f"## Buckets\n\nTimes, in seconds: {ends}. Batch sizes: {sizes}.\n")
    values = (f"- `{label}`: {', '.join(f'`{value}`' for value in known)}" for label, known in _labels().items())
    parts.append("## Labels\n\n" + "\n".join(values) + "\n")
    return "\n".join(parts)


def _table(members: Iterable[Metric]) -> str:
    return "| name | kind | labels | meaning |\n|---|---|---|---|\n" + "\n".join(map(_row, members)) + "\n"


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind.value} | {labels} | {metric.help} |"


def _labels() -> dict[str, tuple[str, ...]]:
    """Return what each label may be, where that is known."""
    known: dict[str, tuple[str, ...]] = {}
    for metric in metrics.COUNTED:
        known |= zip(metric.labels, metric.values, strict=True)
    return known


if __name__ == "__main__":
    PAGE.write_text(page())
