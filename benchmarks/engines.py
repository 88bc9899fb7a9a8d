"""How fast each engine runs a ViT on the CPU, in each precision, and how far its answers are from float32's.

    python -m benchmarks.engines
    python -m benchmarks.engines --checkpoint out/checkpoint --images out/images

All run the same network on two threads, in turns, in one process. Without `--checkpoint`, the weights are random; what
rounding does to a trained network shows with a checkpoint, such as that of `scripts.convert_dinov2`. Needs the
packages of requirements-openvino-dev.txt. The table says which engine is missing here.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engine_parts.environment import crops, require_packages
from benchmarks.engine_parts.runners import BFLOAT16, REFERENCE, THREADS, Pixels, Runner, runners
from benchmarks.harness import checkpoints, command_line, results, tables
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.decoding import images
from vit_api.quantization.gate import compare, probabilities

_MODELS: dict[str, Callable[[Path], None]] = {
    "ViT-B/16": checkpoints.save_vit_base,
    "ViT-S/14": checkpoints.save_vit_small,
}
_BATCH_SIZES = (1, 8)
_CALIBRATION, _JUDGED = 16, 32
_PACKAGES = ("openvino", "nncf", "onnxruntime", "torchao")

Figures = dict[str, Any]


def measure(model: str, pictures: Sequence[Pixels], rounds: int, seconds: float) -> list[Figures]:
    """Return the figures of each engine and precision for one model.

    Args:
        model: The checkpoint's folder.
        pictures: The first calibrate, the rest are judged.
        rounds: Turns of each.
        seconds: Minimum length of a turn.
    """
    calibration, judged = pictures[:_CALIBRATION], pictures[_CALIBRATION:]
    with tempfile.TemporaryDirectory() as folder:
        found = dict(runners(load_checkpoint(model), calibration, Path(folder)))
        ready = {name: run for name, run in found.items() if not isinstance(run, str)}
        speeds = {size: _take_turns(ready, np.stack(judged[:size]), rounds, seconds) for size in _BATCH_SIZES}
        logits = {name: _in_batches(run, judged) for name, run in ready.items()}
    expected = probabilities(logits[REFERENCE], sigmoid=False)
    measured: list[Figures] = []
    for name, run in found.items():
        if isinstance(run, str):
            measured.append({"engine": name, "missing": run})
            continue
        verdict = compare(expected, probabilities(logits[name], sigmoid=False))
        correlation = np.corrcoef(logits[REFERENCE].ravel(), logits[name].ravel())[0, 1]
        figures = {"correlation": round(float(correlation), 5), **verdict.figures()}
        batch = {str(size): speeds[size][name] for size in _BATCH_SIZES}
        measured.append({"engine": name, "batch": batch, **figures})
    return measured


def _take_turns(ready: Mapping[str, Runner], batch: Pixels, rounds: int, seconds: float) -> dict[str, Figures]:
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, run in ready.items():
            turns[name].append(_turn(run, batch, seconds))
    ours = [per_s for per_s, _ in turns.get(BFLOAT16, turns[REFERENCE])]
    return {
        name: {
            "images_per_s": round(statistics.median(per_s for per_s, _ in taken), 2),
            "ratio": round(statistics.median(per_s / our for (per_s, _), our in zip(taken, ours, strict=True)), 2),
            "cpu_ms_per_image": round(1000 * statistics.median(cpu_s for _, cpu_s in taken), 1),
        }
        for name, taken in turns.items()
    }


def _turn(run: Runner, batch: Pixels, seconds: float) -> tuple[float, float]:
    """Return the images per second, and the CPU time of all threads per image."""
    run(batch)  # the threads of the engine before may still be busy waiting
    done, began, cpu_began = 0, time.perf_counter(), time.process_time()
    while not done or time.perf_counter() - began < seconds:
        run(batch)
        done += len(batch)
    return done / (time.perf_counter() - began), (time.process_time() - cpu_began) / done


def _in_batches(run: Runner, pictures: Sequence[Pixels]) -> NDArray[np.float32]:
    size = _BATCH_SIZES[-1]
    return np.concatenate([run(np.stack(pictures[at : at + size])) for at in range(0, len(pictures), size)])


def table(report: Figures) -> str:
    """Return the table of a result: one line per model, engine and precision."""
    speed = ("images/s at 1", "at 8", "ratio at 1", "at 8", "CPU ms an image at 8")
    head = ("model", "engine", *speed, "correlation", "mean difference", "largest", "top-1 agreement")
    rows = []
    for model, measured in report["results"].items():
        for one in measured:
            if "missing" in one:
                rows.append((model, one["engine"], *["-"] * (len(head) - 3), "not available"))
                continue
            first, last = (one["batch"][str(size)] for size in _BATCH_SIZES)
            speeds = (first["images_per_s"], last["images_per_s"], first["ratio"], last["ratio"])
            accuracy = (one["correlation"], f"{one['mean_difference']:.5f}", f"{one['largest_difference']:.4f}")
            rows.append(
                (model, one["engine"], *speeds, last["cpu_ms_per_image"], *accuracy, f"{one['top_1_agreement']:.1%}")
            )
    return tables.markdown(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each model; print and write the result."""
    parser = command_line.parser("engines", __doc__)
    command_line.add_turns(parser, rounds=3, seconds=0.3)
    parser.add_argument(
        "--models", nargs="*", default=list(_MODELS), choices=_MODELS, help="models with random weights"
    )
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint to measure as well")
    parser.add_argument("--images", type=Path, help="images for it (default: crops of photos)")
    options = command_line.parse(parser, arguments)
    require_packages("engines", arguments)
    pictures = crops(_CALIBRATION + _JUDGED)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for model in options.models:
            folder = Path(name) / model.replace("/", "-")
            _MODELS[model](folder)
            found[model] = measure(str(folder), pictures, options.rounds, options.seconds)
            _show(model, found[model])
    if options.checkpoint:
        own = pictures if options.images is None else _read(options.checkpoint, options.images)
        title = f"{options.checkpoint.resolve().parent.name}, trained"
        found[title] = measure(str(options.checkpoint), own, options.rounds, options.seconds)
        _show(title, found[title])
    versions = {name: _version(name) for name in _PACKAGES}
    results.write(options.out, {"threads": THREADS, "engine_versions": versions, "results": found})


def _read(checkpoint: Path, folder: Path) -> list[Pixels]:
    preprocessing = load_checkpoint(str(checkpoint)).preprocessing
    files = sorted(file for file in folder.iterdir() if file.is_file())
    step = max(1, len(files) // (_CALIBRATION + _JUDGED))
    return [images.decode(file.read_bytes(), preprocessing, exact=False) for file in files[::step]][
        : _CALIBRATION + _JUDGED
    ]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _show(model: str, measured: list[Figures]) -> None:
    for one in measured:
        print(model, one, flush=True)


if __name__ == "__main__":
    main()
