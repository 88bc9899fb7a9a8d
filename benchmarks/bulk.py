"""`classify --out`, with and without Ray: its rate against the limit, its memory over many files, and one more core.

    python -m benchmarks.bulk

- Rate: files of photos, a model for 224 px. The limit is one process a core that reads, decodes and runs full batches,
  and writes nothing. What the command takes for an image is seen in the middle of a run, after its start.
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
from benchmarks.harness import checkpoints, command_line, machine, ray_environment, results, tables
from vit_api.load import uploads

GOAL = 0.85
_ENGINES = ("local", "ray")
_DISTINCT_PHOTOS = 500
_DISTINCT_PNGS = 5000
_PART_SIZE, _PARTS = 128, 40
"""Smaller parts than the default of 512, and at least so many: they show how far a run is."""
_MODELS: dict[str, Callable[[Path], None]] = {
    "2 layers": checkpoints.save_two_layer_vit,
    "4 layers": checkpoints.save_small_vit,
}
_EARLY, _LATE = (0.1, 0.3), (0.8, 1.0)
"""Shares of the files between which memory is compared."""

Rounds = list[dict[str, Rate]]


def rates(work: Path, count: int, rounds: int, models: Sequence[str]) -> dict[str, Any]:
    """Compare the rate of both engines with the limit, for each model."""
    make_photos(work, count)
    return {name: _rates(work, name, count, rounds) for name in models}


def make_photos(work: Path, count: int) -> None:
    """Make a folder of photos, unless it is there."""
    if not (folder := work / "photos").exists():
        distinct = min(_DISTINCT_PHOTOS, count)
        files.link(folder, uploads.photos(distinct), distinct, count, ".jpg")


def make_model(work: Path, name: str) -> Path:
    """Make a model, unless it is there, and return its folder."""
    folder = work / name
    if not folder.exists():
        folder.mkdir()
        _MODELS[name](folder)
    return folder


def _rates(work: Path, name: str, count: int, rounds: int) -> dict[str, Any]:
    model = make_model(work, name)
    measured: Rounds = []
    for _ in range(rounds):
        with Limit.running(model) as limit:
            of_round = {"limit": limit.rate(work / "photos")}
        for engine in _ENGINES:
            of_round[engine] = Rate.of(_classify_photos(work, "out", count, model, "--engine", engine))
        measured.append(of_round)
        print(name, json.dumps(_compare(measured[-1:])), flush=True)
    return _compare(measured)


def _classify_photos(work: Path, out: str, count: int, model: Path, *options: str) -> Run:
    part_size = max(1, min(_PART_SIZE, count // _PARTS))
    return runs.classify(work / "photos", work / out, ("--model", str(model), *options), part_size=part_size)


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
    run = runs.classify(
        work / "pngs", work / "out", ("--model", "digits", "--engine", engine), part_size=1024, memory=True
    )
    early, late = (
        statistics.median(
            [each.memory_bytes for each in run.samples if first * count <= each.done <= last * count] or [0]
        )
        for first, last in (_EARLY, _LATE)
    )
    return {
        "files": run.files,
        "images_per_s": round(run.files / run.seconds, 1),
        "early_mib": round(early / 2**20),
        "late_mib": round(late / 2**20),
        "peak_mib": round(max(each.memory_bytes for each in run.samples) / 2**20),
        "ratio": round(late / early, 3) if early and late else None,  # a short run has no samples there
    }


def scaling(work: Path, count: int, rounds: int) -> dict[str, Any]:
    """Compare one worker on one core with two on two."""
    make_photos(work, count)
    model = make_model(work, next(iter(_MODELS)))
    measured: dict[str, list[float]] = {engine: [] for engine in _ENGINES}
    for _ in range(rounds):
        for engine, of_workers in (("local", _shards), ("ray", _workers)):
            one, two = (of_workers(work, model, count, workers) for workers in (1, 2))
            measured[engine].append(two / one)
            print(engine, f"{one:,.1f}/s, {two:,.1f}/s", flush=True)
    return {engine: round(statistics.median(ratios), 2) for engine, ratios in measured.items()}


def _workers(work: Path, model: Path, count: int, workers: int) -> float:
    """Return the images/s of so many workers of one run."""
    with runs.on_cores(workers):
        run = _classify_photos(work, "out", count, model, "--engine", "ray", "--workers", str(workers))
    return Rate.of(run).images_per_s


def _shards(work: Path, model: Path, count: int, workers: int) -> float:
    """Return the images/s of so many runs at once, each with its shard of the photos."""

    def run_shard(number: int) -> Run:
        return _classify_photos(work, f"out-{number}", count, model, "--shard", f"{number}/{workers}")

    with runs.on_cores(workers), ThreadPoolExecutor(workers) as pool:
        shards = list(pool.map(run_shard, range(1, workers + 1)))
    if sum(shard.files for shard in shards) != count:
        raise RuntimeError(f"The shards have {[shard.files for shard in shards]} files, not {count} together.")
    return sum(Rate.of(shard).images_per_s for shard in shards)


def _median(values: Iterator[float]) -> float:
    return round(statistics.median(values), 3)


def table(report: dict[str, Any]) -> str:
    """Return the table of a result: one line per comparison."""
    measured = report["results"]
    parts = {"rates": _rate_rows, "memory": _memory_rows, "scaling": _scaling_rows}
    rows = [row for name, rows_of in parts.items() if name in measured for row in rows_of(measured[name])]
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


def _measure(work: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what was measured so far after each part."""
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "rates": lambda: rates(work, options.images, options.rounds, options.models),
        "memory": lambda: memory(work, options.files),
        "scaling": lambda: scaling(work, options.images, options.rounds),
    }
    measured: dict[str, Any] = {}
    for name, measure in measures.items():
        if options.only is None or name in options.only:
            measured[name] = measure()
            print(name, json.dumps(measured[name]), flush=True)
            yield measured


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark of the command line."""
    parser = command_line.parser("bulk", __doc__)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each measurement (default: %(default)s)")
    parser.add_argument(
        "--images", type=int, default=_PART_SIZE * _PARTS, help="photos of a run (default: %(default)s)"
    )
    parser.add_argument("--files", type=int, default=100_000, help="files of the memory's run (default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=list(_MODELS), default=list(_MODELS), help="default: all")
    parser.add_argument("--only", nargs="+", choices=("rates", "memory", "scaling"), help="default: all")
    parser.add_argument("--quick", action="store_true", help="one round of a few files")
    options = command_line.parse(parser, arguments)
    ray_environment.require()
    if options.quick:
        options.rounds, options.images, options.files, options.models = 1, 1024, 2048, options.models[:1]
    described = machine.describe()
    with tempfile.TemporaryDirectory() as folder:
        for measured in _measure(Path(folder), options):
            figures = {"images": options.images, "rounds": options.rounds, "results": measured}
            results.write(options.out, figures, described)


if __name__ == "__main__":
    main()
