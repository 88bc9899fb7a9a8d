"""How the server behaves at three times its capacity.

    python -m benchmarks.overload

First a closed loop finds the capacity. Then an open loop sends three times as much, each request when it is due,
whether or not earlier ones are answered, so that a slow server gets no relief. The model takes about 10 ms per image
and runs batches of one, so that it is the bottleneck, and not the client, which shares the cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import command_line, machine, servers, tables
from benchmarks.harness.checkpoints import save_small_vit
from benchmarks.harness.open_loop import Client, Reply, percentiles

_QUEUE = 128
_TIMES = 3.0
_CONNECTIONS = 32
_WARM_UP_S = 1.0
_OK, _REFUSED = 200, 503
_SETTINGS = {"api_servers": 1, "cpu_threads": 1, "max_batch_size": 1, "cache_size": 0, "queue_size": _QUEUE}


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Return capacity, goodput and latencies. The two loops take turns, since the machine's speed changes."""
    upload = (machine.ROOT / "examples" / "digit-7.png").read_bytes()
    capacities, shares = [], []
    replies: list[Reply] = []
    with tempfile.TemporaryDirectory() as model, contextlib.ExitStack() as stack:
        save_small_vit(Path(model))
        server = stack.enter_context(servers.vit_api(model=model, **_SETTINGS))
        port = int(server.url.rpartition(":")[2])
        asyncio.run(Client(port, upload).closed_loop(_CONNECTIONS, _WARM_UP_S))
        before = server.resident_bytes() // 2**20
        for _ in range(rounds):
            capacity = len(asyncio.run(Client(port, upload).closed_loop(_CONNECTIONS, seconds))) / seconds
            end = time.monotonic() + seconds
            offered = asyncio.run(Client(port, upload).open_loop(_TIMES * capacity, seconds))
            capacities.append(capacity)
            shares.append(sum(r.status == _OK and r.done_at <= end for r in offered) / seconds / capacity)
            replies += offered
        after = server.resident_bytes() // 2**20
    result = {"rounds": rounds, "seconds": seconds} | _summary(replies, capacities, shares, seconds)
    return result | {"memory_mb": {"before": before, "after": after}}


def _summary(
    replies: Sequence[Reply], capacities: Sequence[float], shares: Sequence[float], seconds: float
) -> dict[str, Any]:
    capacity = statistics.median(capacities)
    refused = [reply for reply in replies if reply.status == _REFUSED]
    return {
        "capacity_per_s": round(capacity),
        "offered_per_s": round(len(replies) / seconds / len(capacities)),
        "goodput_share_of_capacity": round(statistics.median(shares), 3),
        "goodput_shares": [round(share, 3) for share in shares],
        "statuses": {str(status): count for status, count in sorted(Counter(r.status for r in replies).items())},
        "all_refusals_say_when": all(reply.has_retry_after for reply in refused),
        "refused_ms": percentiles([reply.seconds * 1000 for reply in refused]),
        "refused_server_ms": percentiles([reply.server_ms for reply in refused if reply.server_ms is not None]),
        "accepted_ms": percentiles([reply.seconds * 1000 for reply in replies if reply.status == _OK]),
        "full_queue_ms": round(_QUEUE / capacity * 1000),
    }


def table(report: dict[str, Any]) -> str:
    """Return the table of a result."""
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
        ("memory before, after", f"{result['memory_mb']['before']} MiB, {result['memory_mb']['after']} MiB"),
    ]
    return tables.markdown(("at three times the capacity", ""), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    command_line.run_turns("overload", __doc__, measure, arguments, rounds=9, seconds=8)


if __name__ == "__main__":
    main()
