"""(a) The model only: images/s by engine, dtype and batch size, against plain transformers."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForImageClassification

from benchmarks.gpu_parts import clocks
from benchmarks.gpu_parts.part import Part
from benchmarks.gpu_parts.timing import measured_tflops, seconds_per_call, share_of_peak
from vit_api.checkpoints.checkpoint import Checkpoint, load_checkpoint
from vit_api.model.model import VisionModel
from vit_api.model.precision import has_bfloat16
from vit_api.model.scaled_products import MIN_FP8_CAPABILITY

_SECONDS = 0.4
_SUSTAINED_S = 2.0
_WARM_UP_S = 1.0
_MATRIX_SIDE, _QUICK_SIDE = 8192, 256
_SIZES = (1, 2, 4, 8, 16, 24, 32)
_FEW_SIZES = (1, 8, 32)
"""Batch sizes for dtypes other than that of `auto`, and for torch.compile, which takes over ten seconds for each."""
TRANSFORMERS = "transformers"


def run(part: Part) -> None:
    """Measure the eager engine and CUDA graphs in each dtype, that of `auto` first."""
    checkpoint = load_checkpoint(str(part.folder))
    device = torch.device(part.device)
    engines = ("eager", "cudagraph") if part.is_cuda else ("eager",)
    first, *others = dtypes(part, checkpoint)
    part.found("device_name", torch.cuda.get_device_name(device) if part.is_cuda else "CPU")
    part.found("dtype", first)
    measure_engines(part, checkpoint, first, engines, _SIZES)
    part.attempt("matrix peak", _measure_matrix_peak, part, getattr(torch, first))
    part.attempt(TRANSFORMERS, measure_transformers, part, checkpoint, first, _SIZES)
    for dtype in others:
        measure_engines(part, checkpoint, dtype, engines, _FEW_SIZES)
        part.attempt(f"{TRANSFORMERS} {dtype}", measure_transformers, part, checkpoint, dtype, _FEW_SIZES)
    for dtype in scaled_dtypes(part):
        measure_engines(part, checkpoint, dtype, ("cudagraph",), _FEW_SIZES)


def _measure_matrix_peak(part: Part, dtype: torch.dtype) -> None:
    side = _QUICK_SIDE if part.is_quick else _MATRIX_SIDE
    part.found("matrix_peak_tflops", measured_tflops(torch.device(part.device), dtype, part.lasting(1.0), side))


def run_compiled(part: Part) -> None:
    """Measure the compiled engine in the dtype of `auto`, then in int8 and fp8; on CUDA, it is captured as well."""
    checkpoint = load_checkpoint(str(part.folder))
    sizes = (1, 2) if part.is_quick else _FEW_SIZES
    measure_engines(part, checkpoint, dtypes(part, checkpoint)[0], ("compile",), sizes)
    for dtype in scaled_dtypes(part):  # its kernels fuse the rounding of activations with what is before it
        measure_engines(part, checkpoint, dtype, ("compile",), sizes[-1:])


def dtypes(part: Part, checkpoint: Checkpoint) -> list[str]:
    """Return the dtypes to measure, that of `auto` first; on a GPU only those that it does not emulate."""
    device = torch.device(part.device)
    first = _name(VisionModel(checkpoint, part.device, "auto", None).dtype)
    release(device)
    others = ["float16", "bfloat16", "float32"]
    if part.is_cuda and not has_bfloat16(device):
        others.remove("bfloat16")
    return [first] if part.is_quick else [first, *(dtype for dtype in others if dtype != first)]


def scaled_dtypes(part: Part) -> list[str]:
    """Return those of int8 and fp8 that the GPU has; none without one, where they are emulated."""
    if not part.is_cuda:
        return []
    has_fp8 = torch.cuda.get_device_capability(torch.device(part.device)) >= MIN_FP8_CAPABILITY
    return ["int8", "fp8"] if has_fp8 else ["int8"]


@torch.inference_mode()
def measure_engines(
    part: Part, checkpoint: Checkpoint, dtype: str, engines: Sequence[str], sizes: Sequence[int]
) -> None:
    """Measure engines from uint8 pixels on the device to the top k on the device."""
    for engine in engines:
        part.attempt(f"{engine} {dtype}", _measure_engine, part, checkpoint, dtype, engine, sizes)
        release(torch.device(part.device))


def _measure_engine(part: Part, checkpoint: Checkpoint, dtype: str, engine: str, sizes: Sequence[int]) -> None:
    if not part.has_time(_SUSTAINED_S):
        return
    model = VisionModel(checkpoint, part.device, dtype, None, part.max_batch_size)
    started = time.monotonic()
    if engine == "compile":
        model.prepare(engine, tuple(size for size in sizes if size <= part.max_batch_size))
    else:
        model.prepare(engine)
    ready = {"engine": engine, "dtype": dtype, "seconds": round(time.monotonic() - started, 2)}
    part.found("made", [ready])
    if model.engine.name != engine:
        raise RuntimeError("it cannot be used: see the warnings")
    is_warm = False
    for size in _downward(part, sizes):
        shape = (size, *checkpoint.preprocessing.pixel_shape)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=model.device)
        label = "compile, captured" if engine == "compile" and part.is_cuda else engine
        _measure(part, (label, dtype, size), functools.partial(model.engine.run, pixels), is_warm=is_warm)
        is_warm = True


@torch.inference_mode()
def measure_transformers(part: Part, checkpoint: Checkpoint, dtype: str, sizes: Sequence[int]) -> None:
    """Measure transformers' model as commonly used: SDPA, inference mode, from normalised pixels on the device."""
    device = torch.device(part.device)
    network: Any = AutoModelForImageClassification.from_pretrained(
        checkpoint.path, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    network.to(device).eval()
    height, width, _ = checkpoint.preprocessing.pixel_shape
    is_warm = False
    for size in _downward(part, sizes):
        inputs = torch.randn((size, 3, height, width), dtype=network.dtype, device=device)
        _measure(part, (TRANSFORMERS, dtype, size), functools.partial(network, pixel_values=inputs), is_warm=is_warm)
        is_warm = True
    release(device)


def release(device: torch.device) -> None:
    """Free unused memory for the next measurement."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _downward(part: Part, sizes: Sequence[int]) -> list[int]:
    """Return the batch sizes in descending order: the largest counts most, and warms the GPU up."""
    return sorted({min(size, part.max_batch_size) for size in sizes}, reverse=True)


def _measure(part: Part, what: tuple[str, str, int], call: Callable[[], object], *, is_warm: bool) -> None:
    """Time a call, for longer if it is the first of its kind, and record it with the GPU's clocks."""
    engine, dtype, size = what
    seconds, warm_up_s = (_SECONDS, 0.0) if is_warm else (_SUSTAINED_S, _WARM_UP_S)
    if not part.has_time(seconds + warm_up_s):
        return
    device = torch.device(part.device)
    with clocks.watched(part.device) as watched:
        each_s = seconds_per_call(call, device, part.lasting(seconds), part.lasting(warm_up_s))
    row = {"engine": engine, "dtype": dtype, "batch": size, "ms": round(each_s * 1e3, 4)}
    row["images_per_s"] = round(size / each_s, 1)
    if part.is_cuda:
        row["clocks"] = watched.summary()
        if not part.is_quick:
            row["share_of_peak"] = share_of_peak(size / each_s, torch.cuda.get_device_name(device), dtype)
    part.found("rows", [row])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
