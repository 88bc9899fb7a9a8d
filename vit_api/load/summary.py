"""Summarises the replies of a load test. Pure: replies in, figures out."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vit_api.load.client import Reply, Shift

_PERCENTILES = (50.0, 90.0, 99.0, 99.9)
BUSY_CLIENT = 0.8
"""Share of a core from which on a client process is likely to be the bottleneck."""
_LATE_MS = 5.0


def summarise(shifts: Sequence[Shift], seconds: float, goodput_ms: float | None = None) -> dict[str, Any]:
    """Return rates, latencies, errors and the server's own figures.

    Args:
        shifts: What each client process did.
        seconds: Length of the measurement.
        goodput_ms: Maximum latency of goodput; None means no limit.

    Returns:
        Figures that fit into JSON. `requests_per_s` counts all replies within the measurement, `goodput_per_s` only
        the successful ones within `goodput_ms`.
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
    """Return a warning for each sign that the client was the bottleneck."""
    client = summary["client"]
    found = []
    if client["busiest_cpu_share"] >= BUSY_CLIENT:
        found.append(
            f"a client process used {client['busiest_cpu_share']:.0%} of a core and may be the "
            "bottleneck: use more --processes, or another machine for the client."
        )
    if client["sent_late_p99_ms"] > _LATE_MS:
        found.append(
            f"1% of the requests were sent {client['sent_late_p99_ms']:g} ms late or more: part of the "
            "latency, measured from when they were due, is the client's."
        )
    return found


def percentiles(values_ms: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99 and p99.9 by nearest rank; empty without values."""
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
    """Return the server's figures of the requests that ran in a batch.

    Each reply has the size of its batch, so the number of batches is the sum of 1 / size.
    """
    if not run:
        return {}
    return {
        "queue_ms": percentiles([reply.queue_ms for reply in run]),
        "inference_ms": percentiles([reply.inference_ms for reply in run]),
        "mean_batch_size": round(len(run) / sum(1 / reply.batch_size for reply in run), 2),
        "batch_size_p50": statistics.median(reply.batch_size for reply in run),
    }
