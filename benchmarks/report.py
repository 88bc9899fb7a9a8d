"""Writes the tables of benchmarks/README.md, and its plots, from the results.

    python -m benchmarks.report

What stands between `<!-- NAME -->` and `<!-- end -->` is made from `results/NAME.json`; the rest is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.harness import plots
from benchmarks.harness.machine import ROOT

README = ROOT / "benchmarks" / "README.md"
_RESULTS = ROOT / "benchmarks" / "results"
_SECTION = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = Sequence[object]


def render(text: str) -> str:
    """Return the page with each table made anew."""

    def section(match: re.Match[str]) -> str:
        report = json.loads((_RESULTS / f"{match[2]}.json").read_text())
        return f"{match[1]}{_TABLES[match[2]](report)}\n\n{_machine(report['machine'])}\n{match[3]}"

    return _SECTION.sub(section, text)


def _machine(described: dict[str, Any]) -> str:
    versions = described["versions"]
    shown = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "litserve", "uvicorn"))
    hardware = f"{described['processor']}, {described['cores']} cores"
    return f"Commit {described['commit']}, {described['date']}, {hardware}, {shown}."


def _table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _cache_hit(report: dict[str, Any]) -> str:
    head = ("upload", "hits/s", "reference/s", "CPU per request", "reference", "ratio, median of neighbours", "goal")
    rows = []
    for result in report["results"]:
        rates, costs = result["requests_per_s"], result["cpu_us_per_request"]
        cpu = [f"{costs[name]:.0f} us" for name in ("ours", "reference")]
        what = f"{result['case']}, {result['bytes']:,} bytes"
        rows.append((what, f"{rates['ours']:,}", f"{rates['reference']:,}", *cpu, result["ratio"], result["goal"]))
    return _table(head, rows)


def _compare(report: dict[str, Any]) -> str:
    names = list(report["results"][0]["servers"])
    head = [
        "upload",
        "connections",
        *names,
        "no server",
        "of the limit",
        "over LitServe",
        "p50 / FastAPI's",
        "p99 / p50",
    ]
    rows = []
    for result in report["results"]:
        ratios = result["ratios"]
        cells = (result["servers"][name] for name in names)
        shown = [f"{cell['requests_per_s']:,.0f}/s, {cell['p50_ms']:.1f} ms" for cell in cells]
        chosen = (ratios["rate / no server"], ratios["rate / stock LitServe"])
        latency = (ratios["p50 / FastAPI, no batching"], ratios["p99 / p50"])
        row = (result["upload"], result["connections"], *shown, f"{result['limit_per_s']:,}/s")
        rows.append((*row, *(f"{value:.2f}" for value in (*chosen, *latency))))
    return _table(head, rows)


def _batching(report: dict[str, Any]) -> str:
    head = ("requests/s", "policy", "p50", "p99", "mean batch", "batches by size")
    rows = []
    for result in report["results"]:
        sizes = _histogram({int(size): count for size, count in result["batches"].items()})
        latency = (f"{result['p50_ms']:.1f} ms", f"{result['p99_ms']:.1f} ms")
        rows.append((f"{result['rate']:g}", result["policy"], *latency, result["mean_batch_size"], sizes))
    return _table(head, rows)


def _histogram(batches: dict[int, int]) -> str:
    """Word the share of batches in each of a few ranges of sizes."""
    total = sum(batches.values())
    ranges = ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 32))
    shares = {bounds: sum(n for size, n in batches.items() if bounds[0] <= size <= bounds[1]) for bounds in ranges}
    name = {(low, high): str(low) if low == high else f"{low}-{high}" for low, high in ranges}
    return ", ".join(f"{name[bounds]}: {share / total:.0%}" for bounds, share in shares.items() if share)


def _accuracy(report: dict[str, Any]) -> str:
    head = ("engine", "dtype", "decoding", "top-1 agreement", "where clear", "largest difference", "mean", "verdict")
    rows = []
    for result in report["results"]:
        verdict = ("passes" if result["passes"] else "fails") if result["is_judged"] else "not judged"
        agreement = (f"{result[name]:.2%}" for name in ("top_1_agreement", "top_1_agreement_where_clear"))
        differences = (result["largest_difference"], f"{result['mean_difference']:.6f}")
        rows.append((result["engine"], result["dtype"], result["decode"], *agreement, *differences, verdict))
    return _table(head, rows)


def _profile(report: dict[str, Any]) -> str:
    rows = []
    for upload, result in report["results"].items():
        for kind, stages in result["cpu_us_per_request"].items():
            shown = ", ".join(f"{stage} {us:.0f}" for stage, us in stages.items() if us >= 1)
            rows.append((upload, kind, f"{sum(stages.values()):.0f} us", shown))
    return _table(("upload", "process", "CPU a request", "of which, in microseconds"), rows)


def _scaling(report: dict[str, Any]) -> str:
    results = report["results"]
    rows: list[Row] = []
    for name, camera in results["camera"].items():
        rates = camera["requests_per_s"]
        what = f"4032 x 3024 JPEG, {name}, {camera['bytes'] / 1e6:.1f} MB: scaled while decoded / exact"
        rows.append((what, f"{rates['draft']}/s", f"{rates['exact']}/s", camera["ratio"]))
    costs = results["connections"]["cpu_us_per_request"]
    few, many = costs
    what = f"CPU per request: {many} / {few} connections"
    rows.append((what, f"{costs[many]} us", f"{costs[few]} us", results["connections"]["ratio"]))
    memory = results["connections"]["memory_mb"]
    what = "resident memory: after the last / the first of these loads"
    rows.append((what, f"{memory['last']} MB", f"{memory['first']} MB", round(memory["last"] / memory["first"], 3)))
    vit = results["vit_base"]
    best = str(vit["best_batch_size"])
    what = f"ViT-B/16, {vit['dtype']}, batches of {best}: served / model alone"
    rows.append((what, f"{vit['served_per_s']}/s", "in turns", vit["served_over_alone"]))
    alone = vit["alone_per_s"]
    what = f"ViT-B/16 alone: {vit['dtype']} / float32, each at its best batch size"
    rows.append((what, *(f"{max(alone[name].values())}/s" for name in ("auto", "float32")), vit["auto_over_float32"]))
    return _table(("what", "first", "second", "ratio"), rows)


def _tune(report: dict[str, Any]) -> str:
    counts = list(dict.fromkeys(row["connections"] for row in report["results"]))
    rows: dict[tuple[str, int], list[object]] = {}
    for row in report["results"]:
        name = f"{row['value']}, the default" if row["is_default"] else row["value"]
        cells = rows.setdefault((row["setting"], row["value"]), [f"`{row['setting']}`", name])
        cells.append(
            f"{row['ratio']:.2f}: {row['requests_per_s']:,.0f}/s, {row['p50_ms']:.1f} ms, {row['p99_ms']:.1f} ms"
        )
    return _table(("setting", "value", *map(_connections, counts)), rows.values())


def _overload(report: dict[str, Any]) -> str:
    result = report["result"]
    own, refused, accepted = (result[name] for name in ("refused_server_ms", "refused_ms", "accepted_ms"))
    rows = [
        ("capacity, closed loop", f"{result['capacity_per_s']:,}/s"),
        ("offered, open loop", f"{result['offered_per_s']:,}/s"),
        ("goodput, share of the capacity", result["goodput_share_of_capacity"]),
        ("refused, by the server's clock: p50, p99", f"{own['p50']} ms, {own['p99']} ms"),
        ("refused, at the client: p50, p99", f"{refused['p50']} ms, {refused['p99']} ms"),
        ("accepted: p50, p99", f"{accepted['p50']} ms, {accepted['p99']} ms"),
        ("a full queue takes", f"{result['full_queue_ms']} ms"),
        ("memory before, after", f"{result['memory_mb']['before']} MB, {result['memory_mb']['after']} MB"),
    ]
    return _table(("at three times the capacity", ""), rows)


def _soak(report: dict[str, Any]) -> str:
    memory = report["memory_mb"]
    rows = [
        ("minutes", report["minutes"]),
        ("requests", f"{report['requests']:,}"),
        ("lost", len(report["lost"])),
        ("kills", ", ".join(f"{count} {kind}" for kind, count in report["kills"].items())),
        ("memory in the first and last third", f"{memory['first']} MB, {memory['last']} MB"),
        ("descriptors before, after", f"{report['descriptors']['before']}, {report['descriptors']['after']}"),
    ]
    return _table(("soak", ""), rows)


_TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "accuracy": _accuracy,
    "batching": _batching,
    "cache_hit": _cache_hit,
    "compare": _compare,
    "overload": _overload,
    "profile": _profile,
    "scaling": _scaling,
    "soak": _soak,
    "tune": _tune,
}


def _connections(count: int) -> str:
    return f"{count} connection{'' if count == 1 else 's'}"


_CURVES = {
    "max_wait_ms": "waiting time, ms",
    "max_batch_size": "largest batch, images",
    "api_servers": "HTTP processes",
}


def _plot_batching() -> None:
    results = json.loads((_RESULTS / "batching.json").read_text())["results"]
    for value, y in (("p50_ms", "p50 latency, ms"), ("mean_batch_size", "mean batch size, images")):
        lines: dict[str, list[tuple[float, float]]] = {}
        for result in results:
            lines.setdefault(result["policy"], []).append((result["rate"], result[value]))
        plots.lines(lines, _RESULTS / f"batching_{value}.png", x="offered requests/s", y=y)


def _plot_tune() -> None:
    results = json.loads((_RESULTS / "tune.json").read_text())["results"]
    for setting, x in _CURVES.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for result in results:
            if result["setting"] == setting:
                name = _connections(result["connections"])
                lines.setdefault(name, []).append((result["value"], result["ratio"]))
        plots.lines(lines, _RESULTS / f"tune_{setting}.png", x=x, y="requests/s, to the default's")


def main() -> None:
    """Write the page's tables and the plots."""
    README.write_text(render(README.read_text()))
    _plot_batching()
    _plot_tune()


if __name__ == "__main__":
    main()
