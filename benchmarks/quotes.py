"""The figures that pages quote in their sentences, each from a result.

A page has `<!-- KEY -->FIGURE<!-- end -->` in a line; `benchmarks.report` writes the figures. Knows nothing of how they
were measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.harness import machine, results

PAGES = tuple(
    machine.ROOT / name
    for name in ("README.md", "benchmarks/README.md", "docs/reliability.md", "docs/operations.md", "docs/cache.md")
)
_QUOTE = re.compile(r"(<!-- ([a-z_]+)\.([a-z_0-9]+) -->)[^<]*(<!-- end -->)")
_OURS, _TRITON = "this server", "Triton"
_PHOTO, _PNG = "jpeg-65k-224", "png-32"
_MANY = 128

Result = Mapping[str, Any]


def _compared(result: Result, cell: str) -> Mapping[str, Any]:
    """Return a cell of the comparison, with many connections."""
    found: Mapping[str, Any] = next(
        each for each in result["results"] if each["cell"] == cell and each["connections"] == _MANY
    )
    return found


def _times(other: str, cell: str) -> Callable[[Result], str]:
    """Return this server's rate as a multiple of another's."""
    return lambda result: f"{_compared(result, cell)['ratios'][other]['rate']:.1f}"


def _cpu_us(server: str, cell: str) -> Callable[[Result], str]:
    return lambda result: f"{_compared(result, cell)['servers'][server]['cpu_us_per_request']:,.0f}"


def _limit_us(cell: str) -> Callable[[Result], str]:
    """Return the CPU time of an image without a server: all cores do nothing else."""
    return lambda result: f"{result['machine']['cores'] * 1e6 / _compared(result, cell)['limit_per_s']:,.0f}"


def _raw_png(result: Result) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(case for case in result["results"] if case["case"] == "raw PNG")
    return found


def _interrupted(result: Result) -> str:
    return f"{sum(count for name, count in result['outcomes'].items() if name.endswith('interrupted')):,}"


def _http_us(result: Result) -> float:
    return float(sum(result["results"]["65 KB JPEG"]["cpu_us_per_request"]["http"].values()))


def _camera_ms(grain: str) -> Callable[[Result], str]:
    """Return the time of all cores for a camera's picture: they do nothing else."""

    def milliseconds(result: Result) -> str:
        per_s = result["results"]["camera"][grain]["requests_per_s"]["draft"]
        return f"{result['machine']['cores'] / per_s * 1000:.0f}"

    return milliseconds


_FIGURES: dict[str, dict[str, Callable[[Result], str]]] = {
    "compare": {
        "photo_over_triton": _times(_TRITON, _PHOTO),
        "photo_over_mosec": _times("mosec", _PHOTO),
        "photo_over_stock": _times("stock LitServe", _PHOTO),
        "png_cpu_us": _cpu_us(_OURS, _PNG),
        "png_triton_cpu_us": _cpu_us(_TRITON, _PNG),
        "png_limit_us": _limit_us(_PNG),
    },
    "cache_hit": {
        "png_per_s": lambda result: f"{_raw_png(result)['servers'][_OURS]['requests_per_s']:,}",
        "png_of_bare": lambda result: f"{_raw_png(result)['ratios']['bare uvicorn']:.0%}",
    },
    "cache_memory": {"kb_per_entry": lambda result: f"{result['result']['bytes_per_entry'] / 1000:.1f}"},
    "profile": {
        "jpeg_http_ms": lambda result: f"{_http_us(result) / 1000:.1f}",
        "jpeg_per_core_s": lambda result: f"{round(1e6 / _http_us(result), -2):,.0f}",
    },
    "scaling": {"smooth_camera_ms": _camera_ms("smooth"), "detailed_camera_ms": _camera_ms("detailed")},
    "soak": {
        "requests": lambda result: f"{result['requests']:,}",
        "interrupted": _interrupted,
        "workers": lambda result: f"{result['kills']['worker']}",
        "http_processes": lambda result: f"{result['kills']['http']}",
    },
}


def render(page: str) -> str:
    """Return a page with the figures of the stored results; a result that is missing changes nothing.

    Raises:
        KeyError: There is no such figure.
    """
    return _QUOTE.sub(_quote, page)


def _quote(match: re.Match[str]) -> str:
    start, name, key, end = match.groups()
    figure = _FIGURES[name][key]
    return f"{start}{figure(results.read(name))}{end}" if results.file_of(name).exists() else match.group()
