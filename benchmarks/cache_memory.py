"""What one remembered answer costs in memory.

    python -m benchmarks.cache_memory

Fills a cache as an HTTP process does: SHA-256 keys, the packed top 20, and the words of one answer with 5 classes of
ImageNet's size. Counts the process's resident memory before and after.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import machine, process_group
from vit_api.ipc.cache_board import CacheBoard, CacheTally
from vit_api.ipc.records import MAX_TOP_K, Prediction
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.classifier import CachedPrediction
from vit_api.web.requests import to_json

_RESULT = machine.ROOT / "benchmarks" / "results" / "cache_memory.json"
_LABEL = "entertainment center, {}"  # as long as ImageNet's labels are on average


def measure(entries: int) -> dict[str, Any]:
    """Fill a cache and return the bytes that an entry takes."""
    cache: AnswerCache[CachedPrediction] = AnswerCache(entries, 3600, CacheTally(CacheBoard(1), 0))
    before = process_group.resident_bytes(os.getpid())
    for number in range(entries):
        known = CachedPrediction(Prediction(tuple(range(MAX_TOP_K)), (0.5,) * MAX_TOP_K, 0.05))
        top = [{"label": _LABEL.format(number), "confidence": 0.012345} for _ in range(5)]
        known.rendered[5] = to_json({"predictions": top})[:-1]
        cache.put(hashlib.sha256(str(number).encode()).digest(), known)
    return {
        "entries": entries,
        "bytes_per_entry": round((process_group.resident_bytes(os.getpid()) - before) / entries),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache_memory", description="Memory per entry.")
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--json", type=Path, default=_RESULT, help="where the result goes")
    options = parser.parse_args(arguments)
    result = measure(options.entries)
    print(f"{result['bytes_per_entry']:,} bytes an entry, of {result['entries']:,}")
    options.json.write_text(json.dumps({"machine": machine.describe(), "result": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
