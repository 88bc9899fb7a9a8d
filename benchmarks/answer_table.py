"""CPU time and memory of the cache tier in shared memory.

    python -m benchmarks.answer_table

Fills the region of every HTTP process, and looks up what an HTTP process would: an image that it has cached, one that
another process has computed, and one that none has. A process renders the response once for each image and `top_k`;
that is measured apart. All run in one process and in turns; medians.
"""

from __future__ import annotations

import gc
import hashlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cachetools import TTLCache

from benchmarks.harness import command_line, process_group, results, tables
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.ipc.answer_table import AnswerTable, RegionWriter
from vit_api.ipc.cache_board import CacheBoard, CacheTally
from vit_api.ipc.flight_board import FlightBoard, ProcessFlights
from vit_api.ipc.records import MAX_TOP_K, PACKED_PREDICTION_BYTES, Prediction
from vit_api.lit_api import ViTAPI
from vit_api.web.core.cache import AnswerCache
from vit_api.web.core.classifier_result import CachedPrediction
from vit_api.web.core.shared_answers import SharedAnswers
from vit_api.web.responses import to_json

_TTL_S = 3600.0
_TOP_K = 5
_PREDICTION = Prediction(tuple(range(10)) + (0,) * (MAX_TOP_K - 10), (0.5,) * MAX_TOP_K, 0.05)
_MAX_NOTHING_US, _MAX_EXTRA_US = 20.0, 30.0

Cell = Callable[[], None]


def _key(region: int, number: int) -> bytes:
    return hashlib.sha256(b"%d of %d" % (number, region)).digest()


class _Server:
    """The caches of HTTP process 0 in a server with several, all of whose regions are full."""

    def __init__(self, regions: int, entries: int, look_ups: int) -> None:
        self._tally = CacheTally(CacheBoard(regions), 0)
        before = process_group.resident_bytes(os.getpid())
        self._table = AnswerTable(regions, entries, PACKED_PREDICTION_BYTES)
        packed, expires_at = _PREDICTION.pack(), time.monotonic() + _TTL_S
        for region in range(regions):
            writer = RegionWriter(self._table, region)
            for number in range(entries):
                writer.put(_key(region, number), packed, expires_at, 0)
        self.bytes_per_entry = (process_group.resident_bytes(os.getpid()) - before) / (regions * entries)
        self._shared = SharedAnswers(self._table, 0, self._tally)
        self._known = [_key(1 + number % (regions - 1), number) for number in range(min(look_ups, entries))]
        self._unknown = [_key(-1, number) for number in range(look_ups)]
        self._encode = ViTAPI(load_checkpoint("digits", None), max_batch_size=32).encode_response

    def cells(self) -> Iterator[tuple[str, int, Cell]]:
        """Yield the name of each case, its number of look-ups, and a function that does them."""
        cache = self._cache()
        yield "nothing", len(self._unknown), lambda: self._look_up(cache, self._unknown)
        yield "shared hit", len(self._known), lambda: self._look_up(self._cache(), self._known)
        warm = self._cache()
        self._look_up(warm, self._known)
        yield "local hit", len(self._known), lambda: self._look_up(warm, self._known)
        cached = CachedPrediction(_PREDICTION)
        yield "rendering", len(self._known), lambda: self._render(cached, len(self._known))

    def _cache(self) -> AnswerCache[CachedPrediction]:
        return AnswerCache(len(self._known), _TTL_S, self._tally, self._shared)

    def _look_up(self, cache: AnswerCache[CachedPrediction], keys: list[bytes]) -> None:
        for key in keys:
            cache.get(key)

    def _render(self, cached: CachedPrediction, times: int) -> None:
        for _ in range(times):
            cached.add_rendered(_TOP_K, to_json(self._encode(cached.prediction, top_k=_TOP_K))[:-1])


def _own_caches(look_ups: int) -> Iterator[tuple[str, int, Cell]]:
    """Yield look-ups that hit in a process's own cache: without a tier behind it, and as they were before there was."""
    keys = [_key(0, number) for number in range(look_ups)]
    board = CacheBoard(1)
    alone: AnswerCache[CachedPrediction] = AnswerCache(look_ups, _TTL_S, CacheTally(board, 0))
    behind = AnswerTable(16, 1, PACKED_PREDICTION_BYTES)
    tally = CacheTally(board, 0)
    with_tier: AnswerCache[CachedPrediction] = AnswerCache(look_ups, _TTL_S, tally, SharedAnswers(behind, 0, tally))
    before: AnswerCache[CachedPrediction] = AnswerCache(look_ups, _TTL_S, CacheTally(board, 0))
    vars(before)["_values"] = TTLCache(look_ups, _TTL_S)  # as it was when all values had the same TTL
    caches = {"cachetools.TTLCache": before, "without tier": alone, "with tier": with_tier}
    for cache in caches.values():
        for key in keys:
            cache.put(key, CachedPrediction(_PREDICTION), board.epoch)
    for name, get in ((name, cache.get) for name, cache in caches.items()):
        yield name, look_ups, lambda get=get: [get(key) for key in keys] and None  # type: ignore[misc]


def _claims(look_ups: int) -> Cell:
    """Return a function that claims and releases keys, as for each image that is computed."""
    flights = ProcessFlights(FlightBoard(16), 0)
    keys = [_key(0, number) for number in range(look_ups)]

    def claim() -> None:
        for key in keys:
            flights.claim(key)
            flights.release(key)

    return claim


def measure(rounds: int, entries: int, look_ups: int, regions: Sequence[int] = (2, 4, 16)) -> dict[str, Any]:
    """Return microseconds per look-up by number of regions, per hit by kind of cache, and per claim, and the memory."""
    servers = {count: _Server(count, entries, look_ups) for count in regions}
    cells = [((str(count), name), n, cell) for count, server in servers.items() for name, n, cell in server.cells()]
    cells += [(("own cache", name), n, cell) for name, n, cell in _own_caches(look_ups)]
    cells.append((("claims", "claim and release"), look_ups, _claims(look_ups)))
    gc.freeze()  # as HTTP processes do, whose other objects would take part in each collection
    costs_us: dict[tuple[str, str], list[float]] = {names: [] for names, _, _ in cells}
    for _ in range(rounds):
        for names, count, cell in cells:
            began_at = time.process_time()
            cell()
            costs_us[names].append((time.process_time() - began_at) / count * 1e6)
    gc.unfreeze()
    medians = {names: round(statistics.median(costs), 2) for names, costs in costs_us.items()}
    return {
        "us_per_look_up": {
            str(count): {name: cost for (group, name), cost in medians.items() if group == str(count)}
            for count in regions
        },
        "us_per_own_hit": {name: cost for (group, name), cost in medians.items() if group == "own cache"},
        "us_per_claim": medians["claims", "claim and release"],
        "own_hit_ratio": round(
            statistics.median(
                after / before
                for after, before in zip(
                    costs_us["own cache", "with tier"], costs_us["own cache", "cachetools.TTLCache"], strict=True
                )
            ),
            3,
        ),
        "entries": entries,
        "bytes_per_entry": {str(count): round(server.bytes_per_entry) for count, server in servers.items()},
    }


def table(report: dict[str, Any]) -> str:
    """Return the table of a result."""
    result = report["result"]
    rows = [
        (
            regions,
            *(f"{costs[name]:.1f} us" for name in ("nothing", "local hit", "shared hit", "rendering")),
            result["bytes_per_entry"][regions],
        )
        for regions, costs in result["us_per_look_up"].items()
    ]
    header = (
        "HTTP processes",
        "found nowhere",
        "found in its own cache",
        "found in shared memory",
        "its first response",
        "bytes per entry",
    )
    return tables.markdown(header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("answer_table", __doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--entries", type=int, default=10_000, help="entries of each region (default: %(default)s)")
    parser.add_argument("--look-ups", type=int, default=5_000, help="look-ups per round (default: %(default)s)")
    options = command_line.parse(parser, arguments)
    result = measure(options.rounds, options.entries, options.look_ups)
    most = result["us_per_look_up"]["16"]
    extra_us = most["shared hit"] - most["local hit"]
    print(
        f"16 HTTP processes: nothing {most['nothing']} us (limit: {_MAX_NOTHING_US:g}), a hit {extra_us:.1f} us more "
        f"than a local one (limit: {_MAX_EXTRA_US:g}); claim and release {result['us_per_claim']} us; "
        f"own hit {result['own_hit_ratio']} of cachetools.TTLCache's; bytes per entry {result['bytes_per_entry']}"
    )
    results.write(options.out, {"result": result})


if __name__ == "__main__":
    main()
