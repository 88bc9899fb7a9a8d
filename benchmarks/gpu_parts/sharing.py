"""(f) Two small models on one device: a worker for each, as the server has, or one process that runs both in turn.

Two processes share a GPU by time-slicing, or by MPS if its daemon runs; the part only notes whether it does.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Empty, Queue
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_parts.part import Part
from benchmarks.gpu_parts.timing import synchronize
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.model.model import VisionModel

_SIZES, _QUICK_SIZES = (1, 8, 32), (2,)
_SECONDS = 4.0
_START_S = 90.0
_MPS_PIPES = "/tmp/nvidia-mps"


class _Way(NamedTuple):
    """A way to run models on one device.

    Attributes:
        name: What it is called.
        processes: Number of processes.
        models: Number of models in each.
    """

    name: str
    processes: int
    models: int


_WAYS = (_Way("one model", 1, 1), _Way("one process", 1, 2), _Way("two processes", 2, 1))


class _Task(NamedTuple):
    """What one process does.

    Attributes:
        folder: The checkpoint.
        device: The device, as torch names it.
        size: The batch size.
        models: Number of models.
        seconds: For how long.
    """

    folder: str
    device: str
    size: int
    models: int
    seconds: float


def run(part: Part) -> None:
    """Measure one model alone, two in one process, and two in two processes, at each batch size."""
    part.found("mps", Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", _MPS_PIPES)).exists())
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = part.folder if part.is_quick else Path(folder)
        if not part.is_quick:
            from benchmarks.harness.checkpoints import save_vit_small  # imports transformers, which no process needs

            save_vit_small(checkpoint)
        for size in _QUICK_SIZES if part.is_quick else _SIZES:
            for way in _WAYS:
                if not part.has_time(_SECONDS * 2):
                    return
                part.attempt(f"{way.name}, {size}", _measure, part, checkpoint, way, size)


def _measure(part: Part, checkpoint: Path, way: _Way, size: int) -> None:
    context = part.processes()
    barrier, results = context.Barrier(way.processes), context.Queue()
    task = _Task(str(checkpoint), part.device, size, way.models, part.lasting(_SECONDS))
    started = [
        context.Process(target=_compute, args=(task, barrier, results), daemon=True) for _ in range(way.processes)
    ]
    for process in started:
        process.start()
    try:
        found = [results.get(timeout=_START_S) for _ in started]
    except Empty:
        raise TimeoutError(f"no result within {_START_S:g} s") from None
    finally:
        for process in started:
            process.kill()
            process.join()
    seconds = [one for times in found for one in times]
    cuts = statistics.quantiles(seconds, n=100)
    rate = sum(len(times) * size * way.models / sum(times) for times in found)
    row = {"how": way.name, "batch": size, "images_per_s": round(rate, 1)}
    part.found("rows", [row | {"p50_ms": round(cuts[49] * 1000, 3), "p99_ms": round(cuts[98] * 1000, 3)}])


@torch.inference_mode()
def _compute(task: _Task, barrier: Barrier, results: Queue[Any]) -> None:
    """Run batches one after the other, of each model in turn; put the seconds of each turn of all models."""
    checkpoint = load_checkpoint(task.folder)
    models = [VisionModel(checkpoint, task.device, "auto", None, task.size) for _ in range(task.models)]
    for model in models:
        model.prepare("auto", (task.size,))
    device = torch.device(task.device)
    shape = (task.size, *checkpoint.preprocessing.pixel_shape)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    barrier.wait(_START_S)
    times: list[float] = []
    end = time.perf_counter() + task.seconds
    while (begun := time.perf_counter()) < end or len(times) < 2:
        for model in models:
            model.engine.run(pixels)
            synchronize(device)
        times.append(time.perf_counter() - begun)
    results.put(times)
