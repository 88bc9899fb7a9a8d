"""Makes one table of a result of `benchmarks.gpu`. Pure: figures in, text out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_parts import goals
from benchmarks.gpu_parts.part import MAX_BATCH_SIZE

Row = tuple[str, str]

_SUMMARISED = (1, 8, 32)
"""Batch sizes in the summary."""


def table(report: dict[str, Any]) -> str:
    """Return the lines to print."""
    results = {name: part.get("result", {}) for name, part in report["parts"].items()}
    rows = [
        *_alone(results.get("alone", {}), "alone"),
        *_alone(results.get("compiled", {}), "compiled"),
        *_pipeline(results.get("pipeline", {})),
        *_served(results.get("served", {}), goals.best_alone(results)),
        *_gate([*results.get("gate", {}).get("rows", []), *_judged(results.get("compiled", {}))]),
        *_memory(results.get("memory", {})),
        *_sharing(results.get("sharing", {})),
        *_verdicts(report.get("goals", {})),
        *_problems(report["parts"]),
    ]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def _sharing(result: dict[str, Any]) -> Iterator[Row]:
    how = "MPS" if result.get("mps") else "time-slicing"
    for row in result.get("rows", []):
        name = f"(f) {row['how']}, batch of {row['batch']}" + (f", {how}" if row["how"] == "two processes" else "")
        yield name, f"{row['images_per_s']:,.1f} images/s, p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms"


def summary(report: dict[str, Any]) -> str:
    """Return the figures of a result that its readers ask for first, as a Markdown table."""
    results = {name: part["result"] for name, part in report["parts"].items()}
    alone, served = results["alone"], results["served"]
    rows = [
        (f"{row['engine']}, batch of {row['batch']}", row) for row in alone["rows"] if row["dtype"] == alone["dtype"]
    ]
    lines = [
        (f"the model only: {name}, {alone['dtype']}", f"{row['images_per_s']:,.0f} images/s, {row['ms']:.2f} ms")
        for name, row in rows
        if row["batch"] in _SUMMARISED
    ]
    lines += [
        (
            f"without HTTP, {row['policy']}",
            f"{row['images_per_s']:,.0f} images/s, {row['share_of_alone']:.2f} of the model only",
        )
        for row in results["pipeline"]["rows"]
    ]
    best = max(served["peak"], key=lambda row: row["requests_per_s"])
    cores = len(served["cores"]["server"])
    lines.append((f"over HTTP, JPEGs, {cores} cores", f"{best['requests_per_s']:,.0f} images/s"))
    latency = served["at_80_percent"]
    lines.append((f"at {latency['rate']:,.0f} images/s", f"p50 {latency['p50_ms']} ms, p99 {latency['p99_ms']} ms"))
    memory = results["memory"]
    lines.append(
        ("energy, memory", f"{memory['joules_per_image']} J/image, {memory['reserved_with_engine_mib']:.0f} MiB")
    )
    return "\n".join([f"| {alone['device_name']} | |", "|---|---|", *(f"| {name} | {text} |" for name, text in lines)])


def _throttled(row: dict[str, Any]) -> str:
    """Return what slowed the GPU down during a measurement; empty if nothing did."""
    causes = row.get("clocks", {}).get("throttled", {})
    return "".join(f"; {cause} {share:.0%} of the time" for cause, share in causes.items())


def _alone(result: dict[str, Any], name: str) -> Iterator[Row]:
    for row in result.get("rows", []):
        if "ms" not in row:
            continue
        share = row.get("share_of_peak")
        peak = "" if share is None else f", {share:.1%} of the peak"
        goal = f" (goal: {goals.ALONE_PER_S:,})" if row["batch"] == MAX_BATCH_SIZE else ""
        what = f"(a) {row['engine']} {row['dtype']} {row['batch']}"
        yield what, f"{row['images_per_s']:,.0f} images/s{goal}, {row['ms']:.3f} ms{peak}{_throttled(row)}"
    if "matrix_peak_tflops" in result:
        yield f"(a) {result['dtype']} matrix product", f"{result['matrix_peak_tflops']:,g} TFLOP/s"


def _pipeline(result: dict[str, Any]) -> Iterator[Row]:
    for row in result.get("rows", []):
        share = f"{row['share_of_alone']:.3f} of the model only (goal: {goals.PIPELINE_SHARE})"
        yield (
            f"(b) {row['policy']}",
            f"{row['images_per_s']:,.0f} images/s, batches of {row['mean_batch']:.1f}, {share}",
        )


def _served(result: dict[str, Any], alone_per_s: float | None) -> Iterator[Row]:
    for row in result.get("peak", []):
        share = (
            f", {row['requests_per_s'] / alone_per_s:.2f} of (a) (goal: {goals.SERVED_SHARE})" if alone_per_s else ""
        )
        busy = "" if row["gpu_busy_share"] is None else f", GPU busy {row['gpu_busy_share']:.0%}"
        used = ", ".join(f"{kind} {cores}" for kind, cores in row["cores_used"].items())
        latency = f"p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms"
        what = f"(c) {row['connections']} connections, {row['client']}"
        yield what, f"{row['requests_per_s']:,.0f} images/s{share}, {latency}{busy}; cores: {used}"
    if "at_80_percent" in result:
        row = result["at_80_percent"]
        latency = f"p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms (goal: {goals.P99_MS})"
        yield "(c) at 80% of the peak", f"{row['rate']:,.0f} offered/s, {latency}"
        yield from (("", warning) for warning in row["warnings"])
    if "skipped" in result:
        yield "(c)", f"skipped: {result['skipped']}"


def _judged(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result.get("rows", []) if "passes" in row]


def _gate(rows: list[dict[str, Any]]) -> Iterator[Row]:
    for row in rows:
        verdict = "passes" if row["passes"] else "FAILS"
        differs = f"largest difference {row['largest_difference']}, top-1 agreement {row['top_1_agreement']:.1%}"
        yield f"(d) {row['engine']} {row['dtype']}", f"{verdict}: {differs}; ready after {row['startup_s']} s"


def _memory(result: dict[str, Any]) -> Iterator[Row]:
    for row in result.get("rows", []):
        yield f"(e) {row['engine']}, batch of {row['batch']}", f"{row['peak_mib']:,} MiB at peak"
    if "reserved_with_engine_mib" in result:
        yield f"(e) {result['engine']}, all sizes", f"{result['reserved_with_engine_mib']:,} MiB kept"
    if result.get("joules_per_image") is not None:
        yield "(e) energy", f"{result['joules_per_image']} J per image, {result['mean_watts']} W"
    if "skipped" in result:
        yield "(e)", f"skipped: {result['skipped']}"


def _verdicts(report: dict[str, Any]) -> Iterator[Row]:
    said = {True: "met", False: "NOT met", None: "not measured"}
    for verdict in report.get("verdicts", []):
        bound = f"at most {verdict['at_most']:,g}" if "at_most" in verdict else f"at least {verdict['at_least']:,g}"
        found = "" if verdict["found"] is None else f": {verdict['found']:,g}"
        yield f"goal on {report['on']}", f"{verdict['goal']}, {bound}{found}: {said[verdict['met']]}"


def _problems(parts: dict[str, Any]) -> Iterator[Row]:
    for name, part in parts.items():
        yield from ((name, problem) for problem in part.get("result", {}).get("problems", []))
        if part["status"] != "ok":
            yield name, part["status"] + "".join(f"\n    {line}" for line in part.get("log", []))
