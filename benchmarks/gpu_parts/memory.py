"""(e) Peak memory by batch size, and energy per image."""

from __future__ import annotations

import time

import torch

from benchmarks.gpu_parts.alone import release
from benchmarks.gpu_parts.part import Part
from benchmarks.gpu_parts.timing import synchronize
from vit_api.checkpoints.checkpoint import load_checkpoint
from vit_api.model.model import VisionModel
from vit_api.web.operations.gpu_stats import read_gpu

_SIZES = (1, 2, 4, 8, 16, 24, 32, 64, 128, 256)
_ENERGY_S = 5.0
_MIB = 2**20


@torch.inference_mode()
def run(part: Part) -> None:
    """Measure peak memory by batch size, the memory that the best engine keeps, and energy at the largest batch."""
    if not part.is_cuda:
        part.found("skipped", "memory and energy are measured on GPUs only")
        return
    checkpoint = load_checkpoint(str(part.folder))
    model = VisionModel(checkpoint, part.device, "auto", None, part.max_batch_size)
    part.found("weights_mib", round(torch.cuda.memory_allocated(model.device) / _MIB, 1))
    for size in _SIZES:
        pixels = torch.zeros((size, *checkpoint.preprocessing.pixel_shape), dtype=torch.uint8, device=model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        model.engine.run(pixels)
        synchronize(model.device)
        peak = torch.cuda.max_memory_allocated(model.device)
        part.found("rows", [{"engine": "eager", "batch": size, "peak_mib": round(peak / _MIB, 1)}])
    del pixels
    release(model.device)
    model.prepare("auto")
    part.found("engine", model.engine.name)
    part.found("reserved_with_engine_mib", round(torch.cuda.memory_reserved(model.device) / _MIB, 1))
    _measure_energy(part, model)


def _measure_energy(part: Part, model: VisionModel) -> None:
    """Run full batches for some seconds and read the GPU's energy counter before and after."""
    shape = (part.max_batch_size, *model.pixel_shape)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=model.device)
    before, start, batches = read_gpu(model.device_uuid), time.monotonic(), 0
    while time.monotonic() - start < part.lasting(_ENERGY_S):
        for _ in range(10):
            model.engine.run(pixels)
        synchronize(model.device)
        batches += 10
    elapsed_s, after = time.monotonic() - start, read_gpu(model.device_uuid)
    if before is None or after is None or before.energy_joules is None or after.energy_joules is None:
        part.found("joules_per_image", None)
        return
    joules = after.energy_joules - before.energy_joules
    part.found("joules_per_image", round(joules / (batches * part.max_batch_size), 5))
    part.found("mean_watts", round(joules / elapsed_s, 1))
