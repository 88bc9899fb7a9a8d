"""Join the benchmarks' tables and plots into benchmarks/README.md, and the figures into the pages that quote them.

    python -m benchmarks.report

Each benchmark makes its own table. The text between `<!-- NAME -->` and `<!-- end -->` is the table of
`results/NAME.json`; everything else is written by hand. For figures in sentences, see `quotes`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from benchmarks import (
    accuracy,
    answer_table,
    autoscaling,
    batching,
    bulk,
    cache_hit,
    cache_memory,
    compare,
    engines,
    metrics_cost,
    neighbours,
    overload,
    profile,
    quantized,
    quotes,
    ray_serve,
    resizing,
    scaling,
    soak,
    tune,
    urgency,
    versions,
    worst_uploads,
)
from benchmarks.gpu_parts.table import summary as gpu_table
from benchmarks.harness import machine, results

README = machine.ROOT / "benchmarks" / "README.md"
PAGES = (README, machine.ROOT / "docs" / "images.md")
"""The pages with tables of results."""

_SECTION = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "accuracy": accuracy.table,
    "answer_table": answer_table.table,
    "autoscaling": autoscaling.table,
    "batching": batching.table,
    "bulk": bulk.table,
    "cache_hit": cache_hit.table,
    "cache_memory": cache_memory.table,
    "compare": compare.table,
    "engines": engines.table,
    "metrics_cost": metrics_cost.table,
    "neighbours": neighbours.table,
    "overload": overload.table,
    "profile": profile.table,
    "quantized": quantized.table,
    "ray_serve": ray_serve.table,
    "resizing": resizing.table,
    "scaling": scaling.table,
    "soak": soak.table,
    "tune": tune.table,
    "urgency": urgency.table,
    "versions": versions.table,
    "worst_uploads": worst_uploads.table,
}
_GPU_TABLES = {"gpu_h200": gpu_table}
"""Results of `benchmarks.gpu`, by card; `rerun` can't renew them."""

_PLOTS = {"autoscaling": autoscaling.plot, "batching": batching.plot, "tune": tune.plot}


def render(page: str) -> str:
    """Return the page with the table of the stored result in each section."""
    return _SECTION.sub(_section, page)


def _section(match: re.Match[str]) -> str:
    start, name, end = match.groups()
    if not results.file_of(name).exists():
        return f"{start}Not measured yet: `python -m benchmarks.{name}`.\n{end}"
    result = results.read(name)
    return f"{start}{(TABLES | _GPU_TABLES)[name](result)}\n\n{machine.caption(result['machine'])}\n{end}"


def main() -> None:
    """Write the page's tables, the figures that pages quote, and the plots."""
    for page in PAGES:
        page.write_text(render(page.read_text()))
    for page in quotes.PAGES:
        page.write_text(quotes.render(page.read_text()))
    for name, plot in _PLOTS.items():
        if results.file_of(name).exists():
            plot(results.read(name), results.FOLDER)


if __name__ == "__main__":
    main()
