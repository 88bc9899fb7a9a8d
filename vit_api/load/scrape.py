"""Reads a server's metrics before and after a load, and returns what changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

Totals = Mapping[str, float]

_STAGES = {
    "decode_ms": "inference_decode_seconds",
    "queue_ms": "inference_queue_wait_seconds",
    "inference_ms": "inference_batch_duration_seconds",
}
_BATCHES = "inference_batch_size"


def read(url: str, headers: Mapping[str, str]) -> Totals | None:
    """Return each sample's sum over its labels, or None if the server has no such metrics or needs another key.

    Args:
        url: The server's address.
        headers: Additional headers, such as an API key.
    """
    try:
        response = httpx.get(url.rstrip("/") + "/metrics", headers=dict(headers), timeout=10)
    except httpx.HTTPError:
        return None
    if response.status_code != httpx.codes.OK or f"{_BATCHES}_sum" not in response.text:
        return None
    totals: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            totals[sample.name] += sample.value
    return totals


def means(before: Totals | None, after: Totals | None) -> dict[str, float]:
    """Return the mean milliseconds of each stage and the mean batch size between two scrapes."""
    if before is None or after is None:
        return {}
    found = {name: _mean(before, after, metric, 1000) for name, metric in _STAGES.items()}
    found["mean_batch_size"] = _mean(before, after, _BATCHES, 1)
    return {name: mean for name, mean in found.items() if mean is not None}


def _mean(before: Totals, after: Totals, metric: str, scale: float) -> float | None:
    count = after[f"{metric}_count"] - before[f"{metric}_count"]
    total = after[f"{metric}_sum"] - before[f"{metric}_sum"]
    return round(total / count * scale, 3) if count > 0 else None
