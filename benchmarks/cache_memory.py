"""Memory per cached answer.

    python -m benchmarks.cache_memory

Fills a cache as an HTTP process does: SHA-256 keys, the packed top 20, and one serialised response with 5 labels as
long as ImageNet's. Compares the process's resident memory before and after.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import command_line, process_group, results, tables
from vit_api.ipc.cache_board import CacheBoard, CacheTally
from vit_api.ipc.records import MAX_TOP_K, Prediction
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.classifier_result import CachedPrediction
from vit_api.web.responses import to_json

_LABEL = "entertainment center, {}"  # as long as ImageNet's labels are on average


def measure(entries: int) -> dict[str, Any]:
    """Fill a cache; return the bytes per entry."""
    cache: AnswerCache[CachedPrediction] = AnswerCache(entries, 3600, CacheTally(CacheBoard(1), 0))
    before = process_group.resident_bytes(os.getpid())
    for number in range(entries):
        cached = CachedPrediction(Prediction(tuple(range(MAX_TOP_K)), (0.5,) * MAX_TOP_K, 0.05))
        top = [{"label": _LABEL.format(number), "confidence": 0.012345} for _ in range(5)]
        cached.rendered[5] = to_json({"predictions": top})[:-1]
        cache.put(hashlib.sha256(str(number).encode()).digest(), cached, epoch=0)
    return {
        "entries": entries,
        "bytes_per_entry": round((process_group.resident_bytes(os.getpid()) - before) / entries),
    }


def table(report: dict[str, Any]) -> str:
    """Return the table of a result."""
    result = report["result"]
    return tables.markdown(
        ("entries", "bytes per entry"), [(f"{result['entries']:,}", f"{result['bytes_per_entry']:,}")]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("cache_memory", __doc__)
    parser.add_argument("--entries", type=int, default=100_000, help="answers to cache (default: %(default)s)")
    options = command_line.parse(parser, arguments)
    result = measure(options.entries)
    print(f"{result['bytes_per_entry']:,} bytes per entry, for {result['entries']:,}")
    results.write(options.out, {"result": result})


if __name__ == "__main__":
    main()
