"""(a) The model only: images/s by engine, dtype and batch size, against plain transformers."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForImageClassification

from benchmarks.gpu_parts.part import Part
from benchmarks.gpu_parts.timing import seconds_per_call, share_of_peak
from vit_api.checkpoints.checkpoint import Checkpoint, load_checkpoint
from vit_api.model.engines import warmed_batch_sizes
from vit_api.model.model import VisionModel

_SECONDS = 0.4
TRANSFORMERS = "transformers"


def run(part: Part) -> None:
    """Measure the eager engine and CUDA graphs in each dtype, that of `auto` first."""
    checkpoint = load_checkpoint(str(part.folder))
    engines = ("eager", "cudagraph") if part.is_cuda else ("eager",)
    for dtype in _dtypes(part, checkpoint):
        measure_transformers(part, checkpoint, dtype)
        measure_engines(part, checkpoint, dtype, engines)


def run_compiled(part: Part) -> None:
    """Measure the compiled engine in the dtype of `auto`. Compilation may take minutes."""
    measure_engines(part, load_checkpoint(str(part.folder)), "auto", ("compile",))


def _dtypes(part: Part, checkpoint: Checkpoint) -> list[str]:
    model = VisionModel(checkpoint, part.device, "auto", None)
    part.found("device_name", model.device_name)
    part.found("cuda", torch.version.cuda)
    first = _name(model.dtype)
    others = [] if part.is_quick else [dtype for dtype in ("float16", "bfloat16", "float32") if dtype != first]
    return [first, *others]


@torch.inference_mode()
def measure_engines(part: Part, checkpoint: Checkpoint, dtype: str, engines: Sequence[str]) -> None:
    """Measure engines from uint8 pixels on the device to the top k on the device."""
    model = VisionModel(checkpoint, part.device, dtype, None, part.max_batch_size)
    for engine in engines:
        started = time.monotonic()
        model.prepare(engine)
        ready = {"engine": engine, "dtype": _name(model.dtype), "seconds": round(time.monotonic() - started, 2)}
        part.found("made", [ready])
        if model.engine.name != engine:
            part.found("problems", [f"The engine {engine} cannot be used in {_name(model.dtype)}: see the warnings."])
            continue
        for size in warmed_batch_sizes(part.max_batch_size):
            shape = (size, *checkpoint.preprocessing.pixel_shape)
            pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=model.device)
            _measure(part, model, engine, size, lambda pixels=pixels: model.engine.run(pixels))  # type: ignore[misc]
    release(model.device)


@torch.inference_mode()
def measure_transformers(part: Part, checkpoint: Checkpoint, dtype: str) -> None:
    """Measure transformers' model as commonly used: SDPA, inference mode, from normalised pixels on the device."""
    device = torch.device(part.device)
    network: Any = AutoModelForImageClassification.from_pretrained(
        checkpoint.path, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    network.to(device).eval()
    height, width, _ = checkpoint.preprocessing.pixel_shape
    for size in warmed_batch_sizes(part.max_batch_size):
        inputs = torch.randn((size, 3, height, width), dtype=network.dtype, device=device)
        _measure(part, network, TRANSFORMERS, size, lambda inputs=inputs: network(pixel_values=inputs).logits)  # type: ignore[misc]
    release(device)


def release(device: torch.device) -> None:
    """Free unused memory for the next measurement."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _measure(part: Part, model: Any, engine: str, size: int, call: Callable[[], object]) -> None:
    if not part.has_time(_SECONDS):
        return
    device, dtype = torch.device(model.device), _name(model.dtype)
    seconds = seconds_per_call(call, device, part.lasting(_SECONDS))
    row = {"engine": engine, "dtype": dtype, "batch": size, "ms": round(seconds * 1e3, 4)}
    row["images_per_s"] = round(size / seconds, 1)
    if device.type == "cuda" and not part.is_quick:
        row["share_of_peak"] = share_of_peak(size / seconds, torch.cuda.get_device_name(device), dtype)
    part.found("rows", [row])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
