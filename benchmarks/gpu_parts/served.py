"""(c) The whole server under load, with 500 x 375 JPEGs from clients on the same machine.

A closed loop finds the peak, and an open loop at 80% of it measures latency. Both use the bundled client, on separate
cores, so that 80% of the peak is 80% of what the server can do beside that client. wrk, which needs fewer cores, gives
another figure. Without aiohttp there is only that one; without both, the part is skipped.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import clocks
from benchmarks.gpu_parts.part import Part
from benchmarks.harness import process_group, servers, wrk
from vit_api.load import uploads

_CONNECTIONS, _QUICK_CONNECTIONS = (64, 128, 256), (8,)
_PEAK_S = 8.0
_LATENCY_S = 12.0
_WARM_UP_S = 2.0
_LOAD_SHARE = 0.8
_STAGES_S = 3.0
_SHORTEST_S = 1.0
"""The shortest load: in less, a busy machine may answer nothing."""
_CORES_PER_CLIENT = 5
"""Of 16 cores, four leave the clients idle for most of the time, and with two they send late."""
_SETTINGS = {"cache_size": 0, "max_batch_size": 32, "queue_size": 1024}


def run(part: Part) -> None:
    """Start the server, find its peak, and measure latencies below it."""
    has_client = find_spec("aiohttp") is not None
    if not has_client and not wrk.is_installed():
        part.found("skipped", "needs wrk, or aiohttp for the bundled client (requirements-bench.txt)")
        return
    ours, theirs = split_cores(sorted(os.sched_getaffinity(0)))
    settings = {"model": part.folder, "device": part.device, "api_servers": len(theirs), **_SETTINGS}
    settings |= part.settings
    part.found("settings", {name: str(value) for name, value in settings.items() if name != "model"})
    part.found("cores", {"clients": ours, "server": theirs})
    with contextlib.ExitStack() as stack:
        started = time.monotonic()
        with _on(theirs):  # inherited by the server
            server = stack.enter_context(servers.vit_api(**settings))
        stack.enter_context(_on(ours))
        part.found("ready_after_s", round(time.monotonic() - started, 1))
        peak = _find_peak(part, server, has_client=has_client)
        if has_client and part.has_time(_LATENCY_S + _WARM_UP_S):
            _measure_latency(part, server, _LOAD_SHARE * peak)
        if part.has_time(4 * _STAGES_S):
            _find_stages(part, server)


def split_cores(cores: list[int]) -> tuple[list[int], list[int]]:
    """Return the cores of the clients, a fifth, and those of the server; all are shared if there is only one."""
    count = max(1, len(cores) // _CORES_PER_CLIENT)
    return (cores[-count:], cores[:-count]) if len(cores) > 1 else (cores, cores)


@contextlib.contextmanager
def _on(cores: list[int]) -> Iterator[None]:
    """Run this thread, and the processes that it starts, on these cores until the context ends."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _find_peak(part: Part, server: servers.Server, *, has_client: bool) -> float:
    """Return the best rate of the closed loops; record the CPU and GPU usage of each."""
    best = 0.0
    for connections in _QUICK_CONNECTIONS if part.is_quick else _CONNECTIONS:
        if best and not part.has_time(_PEAK_S + _LATENCY_S):
            break
        row = _observed(part, server, connections, _load if has_client else _load_with_wrk)
        best = max(best, row["requests_per_s"])
    part.found("images_per_s", best)
    if has_client and wrk.is_installed() and part.has_time(2 * _PEAK_S + _LATENCY_S):
        _observed(part, server, connections, _load_with_wrk)
    return best


def _observed(
    part: Part, server: servers.Server, connections: int, load: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """Run a closed loop; return its figures, which are recorded with the CPU and GPU usage."""
    cpu_before, start = _cpu_seconds(server), time.monotonic()
    with clocks.watched(part.device) as watched:
        row = load(part, server, connections=connections)
    elapsed_s, cpu_after = time.monotonic() - start, _cpu_seconds(server)
    row |= {"gpu_busy_share": watched.busy_share, "clocks": watched.summary()}
    row["cores_used"] = {kind: round((cpu_after[kind] - cpu_before[kind]) / elapsed_s, 2) for kind in cpu_after}
    part.found("peak", [{"connections": connections} | row])
    return row


def _load_with_wrk(part: Part, server: servers.Server, *, connections: int) -> dict[str, Any]:
    """Send one image repeatedly; the cache is off."""
    upload = next(uploads.photos(1))
    url, seconds = server.url + "/predict", max(_SHORTEST_S, part.lasting(_PEAK_S))
    wrk.post(url, upload, uploads.RAW, connections=connections, seconds=part.lasting(_WARM_UP_S))
    load = wrk.post(url, upload, uploads.RAW, connections=connections, seconds=seconds)
    load.check(f"{connections} connections")
    figures = {"requests_per_s": round(load.rate, 1), "p50_ms": load.p50_ms, "p99_ms": load.p99_ms}
    return {"client": "wrk"} | figures


def _load(part: Part, server: servers.Server, *, connections: int | None = None, rate: float = 0.0) -> dict[str, Any]:
    """Load with the bundled client, in a closed loop or in an open loop at a rate."""
    from vit_api.load import client, client_processes, summary

    plan = client.LoadPlan(
        url=server.url + "/predict",
        pictures=tuple(uploads.photos(16)),
        concurrency=connections,
        rate=rate,
        warm_up_s=part.lasting(_WARM_UP_S),
        seconds=max(_SHORTEST_S, part.lasting(_PEAK_S if connections else _LATENCY_S)),
    )
    found = summary.summarise(client_processes.run(plan, len(os.sched_getaffinity(0))), plan.seconds)
    return {
        "client": "bundled",
        "requests_per_s": found["goodput_per_s"],
        "p50_ms": found["latency_ms"].get("p50"),
        "p99_ms": found["latency_ms"].get("p99"),
        "details": {name: found[name] for name in ("errors", "server", "client")},
        "warnings": summary.warnings(found),
    }


def _measure_latency(part: Part, server: servers.Server, rate: float) -> None:
    server.settle()
    part.found("at_80_percent", {"rate": round(rate, 1)} | _load(part, server, rate=max(1.0, rate)))


def _find_stages(part: Part, server: servers.Server) -> None:
    """Record the CPU time by stage of an HTTP process and of the worker, if py-spy may trace them."""
    from benchmarks.profile import py_spy, sample

    if not wrk.is_installed() or py_spy() is None:
        part.found("stages", "skipped: needs wrk and py-spy")
        return
    by_kind = {kind: pid for pid, kind in process_group.kinds(server.group).items() if kind in ("http", "worker")}
    upload, seconds = next(uploads.photos(1)), max(1.0, part.lasting(_STAGES_S))
    with tempfile.TemporaryDirectory() as folder:
        try:
            samples = sample(server, upload, by_kind.values(), seconds, Path(folder))
        except (RuntimeError, OSError) as error:
            part.found("stages", f"skipped: {error}")
            return
    stages: dict[str, dict[str, float]] = {}
    for kind, pid in by_kind.items():
        counts: defaultdict[str, int] = defaultdict(int)
        for thread in samples[pid].values():
            for stage, count in thread.items():
                counts[stage] += count
        total = sum(counts.values())
        stages[kind] = {stage: round(count / total, 3) for stage, count in sorted(counts.items(), key=lambda i: -i[1])}
    part.found("stages", stages)


def _cpu_seconds(server: servers.Server) -> dict[str, float]:
    """Return the CPU time that the server's processes have used, by kind."""
    used: defaultdict[str, float] = defaultdict(float)
    for pid, kind in process_group.kinds(server.group).items():
        used[kind] += sum(process_group.cpu_seconds_by_thread(pid).values())
    return dict(used)
