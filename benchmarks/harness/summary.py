"""What a load test's replies add up to. Pure: replies in, figures out."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.harness.client import Reply, Shift

_PERCENTILES = (50.0, 90.0, 99.0, 99.9)
BUSY_CLIENT = 0.8
"""From this share of a core on, a client process is likely to be what limits the load."""
_LATE_MS = 5.0


def summarise(shifts: Sequence[Shift], seconds: float, goodput_ms: float | None = None) -> dict[str, Any]:
    """Return rates, latencies, errors and what the server said of itself.

    Args:
        shifts: What each client process did.
        seconds: How long the load took that counts.
        goodput_ms: An answer later than this is no good; None: each answer is.

    Returns:
        Figures that fit into JSON. `requests_per_s` counts all that got a reply in time, whatever it was;
        `goodput_per_s` those that got their answer.
    """
    replies = [reply for shift in shifts for reply in shift.replies]
    good = [reply for reply in replies if reply.outcome == "ok"]
    in_time = [reply for reply in good if goodput_ms is None or _latency_ms(reply) <= goodput_ms]
    late_ms = percentiles([(reply.sent_s - reply.intended_s) * 1000 for reply in replies])
    return {
        "requests": len(replies),
        "requests_per_s": round(_within(replies, seconds) / seconds, 1),
        "goodput_per_s": round(_within(in_time, seconds) / seconds, 1),
        "latency_ms": percentiles([_latency_ms(reply) for reply in good]),
        "errors": dict(Counter(reply.outcome for reply in replies if reply.outcome != "ok").most_common()),
        "cache": dict(Counter(reply.cache for reply in good if reply.cache).most_common()),
        "server": _server([reply for reply in good if reply.batch_size]),
        "client": {
            "processes": len(shifts),
            "busiest_cpu_share": round(max(shift.cpu_share for shift in shifts), 2),
            "sent_late_p99_ms": late_ms.get("p99", 0.0),
        },
    }


def warnings(summary: dict[str, Any]) -> list[str]:
    """Say where the figures are the client's rather than the server's."""
    client = summary["client"]
    found = []
    if client["busiest_cpu_share"] >= BUSY_CLIENT:
        found.append(
            f"a client process used {client['busiest_cpu_share']:.0%} of a core: the client may be the limit; "
            "try more --processes, or another machine for it"
        )
    if client["sent_late_p99_ms"] > _LATE_MS:
        found.append(
            f"1% of the requests went {client['sent_late_p99_ms']:g} ms late or more; latency counts from when they "
            "were meant to go, so part of it is the client's"
        )
    return found


def percentiles(values_ms: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99 and p99.9 by the nearest rank; nothing of nothing."""
    ordered = sorted(values_ms)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {f"p{rank:g}": round(ordered[min(last, int(len(ordered) * rank / 100))], 2) for rank in _PERCENTILES}


def _latency_ms(reply: Reply) -> float:
    return (reply.done_s - reply.intended_s) * 1000


def _within(replies: Sequence[Reply], seconds: float) -> int:
    return sum(reply.done_s <= seconds for reply in replies)


def _server(run: Sequence[Reply]) -> dict[str, Any]:
    """Return what the server said of the requests that a batch ran for.

    Each image says how large its batch was, so that the batches are the sum of 1 / size.
    """
    if not run:
        return {}
    return {
        "queue_ms": percentiles([reply.queue_ms for reply in run]),
        "inference_ms": percentiles([reply.inference_ms for reply in run]),
        "mean_batch_size": round(len(run) / sum(1 / reply.batch_size for reply in run), 2),
        "batch_size_p50": statistics.median(reply.batch_size for reply in run),
    }
