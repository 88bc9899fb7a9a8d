"""`classify --out`, with and without Ray: its rate against the limit, its memory over many files, and one more core.

    python -m benchmarks.bulk

- Rate: files of photos, a model for 224 px. The limit is one process a core that reads, decodes and runs full batches,
  and writes nothing. What the command takes for an image is the difference of a run with many files and one with few.
- Memory: of all processes while 100,000 small files are classified with the built-in model.
- Scaling: one core with one worker, and two with two. Without Ray, a worker is a run with `--shard`.

Runs take turns. Needs `make ray`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.bulk_parts import files, runs
from benchmarks.bulk_parts.limit import Limit
from benchmarks.bulk_parts.runs import Rate, Run
from benchmarks.harness import checkpoints, command_line, ray_environment, results, tables
from vit_api.load import uploads

GOAL = 0.85
_ENGINES = ("local", "ray")
_DISTINCT_PHOTOS = 500
_DISTINCT_PNGS = 5000
_MODELS: dict[str, Callable[[Path], None]] = {
    "2 layers": checkpoints.save_two_layer_vit,
    "4 layers": checkpoints.save_small_vit,
}
_EARLY, _LATE = (0.1, 0.3), (0.8, 1.0)
"""Shares of the files between which memory is compared."""

Rounds = list[dict[str, Rate]]


def rates(work: Path, few: int, many: int, rounds: int, models: Sequence[str]) -> dict[str, Any]:
    """Compare the rate of both engines with the limit, for each model."""
    make_photos(work, few, many)
    return {name: _rates(work, name, few, many, rounds) for name in models}


def make_photos(work: Path, *counts: int) -> None:
    """Make a folder for each number of photos, unless it is there."""
    photos = list(uploads.photos(min(_DISTINCT_PHOTOS, max(counts))))
    for count in counts:
        if not (folder := work / f"photos-{count}").exists():
            files.link(folder, iter(photos), len(photos), count, ".jpg")


def make_model(work: Path, name: str) -> Path:
    """Make a model, unless it is there, and return its folder."""
    folder = work / name
    if not folder.exists():
        folder.mkdir()
        _MODELS[name](folder)
    return folder


def _rates(work: Path, name: str, few: int, many: int, rounds: int) -> dict[str, Any]:
    model = make_model(work, name)
    measured: Rounds = []
    for _ in range(rounds):
        with Limit.running(model) as limit:
            of_round = {"limit": limit.rate(work / f"photos-{many}")}
        for engine in _ENGINES:
            options = ("--model", str(model), "--engine", engine)
            of_few, of_many = (runs.classify(work / f"photos-{n}", work / "out", options) for n in (few, many))
            of_round[engine] = Rate.between(of_few, of_many)
        measured.append(of_round)
        print(name, json.dumps(_compare(measured[-1:])), flush=True)
    return _compare(measured)


def _compare(measured: Rounds) -> dict[str, Any]:
    """Return the median of each figure, and the medians of the ratios within a round."""
    compared: dict[str, Any] = {}
    for name in measured[0]:
        values = [dataclasses.asdict(each[name]) for each in measured]
        compared[name] = {key: round(statistics.median(value[key] for value in values), 1) for key in values[0]}
        compared[name]["of_limit"] = _median(each[name].images_per_s / each["limit"].images_per_s for each in measured)
        compared[name]["cpu_of_limit"] = _median(each["limit"].cpu_us / each[name].cpu_us for each in measured)
    return compared


def memory(work: Path, count: int) -> dict[str, Any]:
    """Follow the memory of both engines over many small files."""
    files.link(work / "pngs", files.small_pngs(), _DISTINCT_PNGS, count, ".png")
    return {engine: _memory(work, engine, count) for engine in _ENGINES}


def _memory(work: Path, engine: str, count: int) -> dict[str, Any]:
    run = runs.classify(work / "pngs", work / "out", ("--model", "digits", "--engine", engine), part_size=1024)
    early, late = (
        statistics.median([size for done, size in run.memory if first * count <= done <= last * count] or [0])
        for first, last in (_EARLY, _LATE)
    )
    return {
        "files": run.files,
        "images_per_s": round(run.files / run.seconds, 1),
        "early_mib": round(early / 2**20),
        "late_mib": round(late / 2**20),
        "peak_mib": round(max(size for _, size in run.memory) / 2**20),
        "ratio": round(late / early, 3) if early and late else None,  # a short run has no samples there
    }


def scaling(work: Path, few: int, many: int, rounds: int) -> dict[str, Any]:
    """Compare one worker on one core with two on two."""
    make_photos(work, few, many)
    model = make_model(work, next(iter(_MODELS)))
    measured: dict[str, list[float]] = {engine: [] for engine in _ENGINES}
    for _ in range(rounds):
        for engine, of_workers in (("local", _shards), ("ray", _workers)):
            one, two = (Rate.between(*(of_workers(work, model, n, count) for n in (few, many))) for count in (1, 2))
            measured[engine].append(two.images_per_s / one.images_per_s)
    return {engine: round(statistics.median(ratios), 2) for engine, ratios in measured.items()}


def _workers(work: Path, model: Path, names: int, count: int) -> Run:
    options = ("--model", str(model), "--engine", "ray", "--workers", str(count))
    with runs.on_cores(count):
        return runs.classify(work / f"photos-{names}", work / "out", options)


def _shards(work: Path, model: Path, names: int, count: int) -> Run:
    """Run as many shards at once as there are cores."""

    def run_shard(number: int) -> Run:
        options = ("--model", str(model), "--shard", f"{number}/{count}")
        return runs.classify(work / f"photos-{names}", work / f"out-{number}", options)

    with runs.on_cores(count), ThreadPoolExecutor(count) as pool:
        shards = list(pool.map(run_shard, range(1, count + 1)))
    if sum(shard.files for shard in shards) != names:
        raise RuntimeError(f"The shards have {[shard.files for shard in shards]} files, not {names} together.")
    return Run(names, max(shard.seconds for shard in shards), sum(shard.cpu_s for shard in shards), ())


def _median(values: Iterator[float]) -> float:
    return round(statistics.median(values), 3)


def table(report: dict[str, Any]) -> str:
    """Return the table of a result: one line per comparison."""
    measured = report["results"]
    rows = [*_rate_rows(measured["rates"]), *_memory_rows(measured["memory"]), *_scaling_rows(measured["scaling"])]
    return tables.markdown(("what", "", "reference", "ratio", "goal"), rows)


def _rate_rows(of_models: dict[str, Any]) -> Iterator[tables.Row]:
    for model, by_name in of_models.items():
        limit = by_name["limit"]
        for engine in _ENGINES:
            ours = by_name[engine]
            what = f"{model}, {_title(engine)}"
            yield f"{what}: images/s", ours["images_per_s"], limit["images_per_s"], ours["of_limit"], GOAL
            cpu = (f"{each['cpu_us']:,.0f} us" for each in (ours, limit))
            yield f"{what}: CPU of an image", *cpu, f"1 / {ours['cpu_of_limit']}", "-"


def _memory_rows(by_engine: dict[str, Any]) -> Iterator[tables.Row]:
    for engine, row in by_engine.items():
        what = f"memory over {row['files']:,} files, {_title(engine)}: late / early"
        yield what, f"{row['late_mib']} MiB", f"{row['early_mib']} MiB", row["ratio"], "1"


def _scaling_rows(by_engine: dict[str, float]) -> Iterator[tables.Row]:
    for engine, ratio in by_engine.items():
        yield f"two workers on two cores / one on one, {_title(engine)}", "-", "-", ratio, "2"


def _title(engine: str) -> str:
    return "on Ray" if engine == "ray" else "without Ray"


def _measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    few = options.images // 4
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "rates": lambda: rates(work, few, options.images, options.rounds, options.models),
        "memory": lambda: memory(work, options.files),
        "scaling": lambda: scaling(work, few, options.images, options.rounds),
    }
    measured = {}
    for name, measure in measures.items():
        if options.only in (None, name):
            measured[name] = measure()
            print(name, json.dumps(measured[name]), flush=True)
    return measured


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("bulk", __doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each measurement (default: %(default)s)")
    parser.add_argument("--images", type=int, default=8192, help="photos of a run (default: %(default)s)")
    parser.add_argument("--files", type=int, default=100_000, help="files of the memory's run (default: %(default)s)")
    parser.add_argument("--only", choices=("rates", "memory", "scaling"), help="default: all")
    parser.add_argument("--quick", action="store_true", help="one round of a few files")
    options = command_line.parse(parser, arguments)
    ray_environment.require()
    options.models = list(_MODELS)
    if options.quick:
        options.rounds, options.images, options.files, options.models = 1, 256, 2048, options.models[:1]
    with tempfile.TemporaryDirectory() as folder:
        measured = _measure(Path(folder), options)
    results.write(options.out, {"images": options.images, "rounds": options.rounds, "results": measured})


if __name__ == "__main__":
    main()
